"""Latents and embeddings are encoded once for all workers, and nothing changes by it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.plan.plan import Plan, TrainingRun
from harness.config.schema.model import SdxlModel
from harness.diffusion.models import load_model, vae
from harness.diffusion.models.text_encoding import PromptEncoder
from harness.engine.accounting.gc import collect_garbage, find, holdings, verify
from harness.engine.pipeline import write_plan
from harness.engine.stages import encodings as encoded_stages
from harness.engine.stages.context import Context, _resident_model
from harness.engine.stages.encodings import TEXTS, texts_id, texts_in, texts_of
from harness.engine.stages.sampling import ensure_images
from harness.engine.stages.training import ensure_checkpoints
from harness.errors import TrainingError
from harness.store.workspace import Workspace
from tests.sweeps.small import small_plan

Replan = Callable[..., Plan]


@pytest.fixture
def replan(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> Replan:
    def changed(**changes: Any) -> Plan:
        return small_plan(tmp_path, tiny_config, tiny_clip, **changes)

    return changed


def bench_of(plan: Plan, root: Path | str) -> Context:
    return Context(plan=plan, workspace=Workspace(root), report=lambda *_: None)


def own_run(plan: Plan) -> TrainingRun:
    return plan.runs[str(plan.trials[0].run_id)]


def train(plan: Plan, root: Path | str) -> tuple[Context, bytes]:
    """The bytes of the own run's last adapter."""
    ctx, run = bench_of(plan, root), own_run(plan)
    for error in ensure_checkpoints(ctx, [run.run_id]).values():
        raise error
    artifact = ctx.workspace.checkpoint(run.run_id, run.checkpoints[-1])
    return ctx, artifact.read("pytorch_lora_weights.safetensors")


def draw_controls(plan: Plan, root: Path | str) -> tuple[Context, list[str]]:
    """The hashes of the controls' images, drawn by a worker that has just begun."""
    _resident_model.cache_clear()
    ctx, found = bench_of(plan, root), []
    for arm in plan.control_arms:
        ensure_images(ctx, arm, plan.cells(arm, "dev"))
        for chunk in ctx.workspace.image_chunks(arm.arm_id):
            found += [facts["sha256"] for name, facts in chunk.manifest()["files"].items() if ".png" in name]
    return ctx, found


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the VAE and the text encoders are given."""
    seen: list[Any] = []
    encode, words = vae.encode, PromptEncoder._encode

    def encode_images(pipeline: Any, images: list[Any]) -> Any:
        seen.extend(images)
        return encode(pipeline, images)

    def encode_words(self: PromptEncoder, text: str) -> Any:
        seen.append(text)
        return words(self, text)

    monkeypatch.setattr(vae, "encode", encode_images)
    monkeypatch.setattr(PromptEncoder, "_encode", encode_words)
    return seen


def damage(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


TRAINING = {"learning_rate": 0.01, "batch_size": 2, "steps": 4, "holdout": 1, "gradient_accumulation": 2}


@pytest.mark.parametrize("flip", [False, True])
def test_training_from_stored_latents_is_the_same_to_the_bit(
    flip: bool, replan: Replan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replan(training={**TRAINING, "flip": flip})
    ctx, stored = train(plan, tmp_path / "stored")
    views = {path.name for path in (ctx.workspace.root / "latents").glob("*/*")}
    assert views == ({"center", "center-mirrored"} if flip else {"center"})

    monkeypatch.setattr(encoded_stages, "sees_all", lambda *_: False)
    plain, on_the_way = train(plan, tmp_path / "plain")
    assert not (plain.workspace.root / "latents").exists()
    assert stored == on_the_way


def test_a_dataset_is_encoded_once_for_all_runs(replan: Replan, tmp_path: Path, encoded: list[Any]) -> None:
    train(replan(), tmp_path)
    images = [image for image in encoded if not isinstance(image, str)]
    assert len(images) == 4  # keywords × guidance
    encoded.clear()
    train(replan(adapter={"rank": 1}), tmp_path)
    assert not [image for image in encoded if not isinstance(image, str)]


def test_views_that_hardly_come_again_are_not_stored(replan: Replan, tmp_path: Path) -> None:
    short = replan(axes={}, training={"batch_size": 2, "steps": 1})
    ctx, _ = train(short, tmp_path)
    assert not (ctx.workspace.root / "latents").exists()
    run = own_run(short)
    assert not encoded_stages.views_of(
        replace(run, training=run.training.model_copy(update={"crop": "random"}))
    )


def test_one_machine_reads_from_a_bucket_what_another_encoded(
    s3: str, replan: Replan, tmp_path: Path, encoded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_controls(replan(), s3)
    train(replan(), s3)
    assert encoded
    encoded.clear()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "another"))
    _resident_model.cache_clear()
    ctx = bench_of(replan(adapter={"rank": 1}), s3)
    model = ctx.model(own_run(ctx.plan).dataset.model)
    encoded_stages.ensure_texts(ctx, model, texts_of(ctx.plan, model.config))
    assert not encoded and not model.texts.unknown(texts_of(ctx.plan, model.config))
    train(ctx.plan, s3)
    assert set(encoded) <= {"wrong", ""}  # what is trained under


def test_damaged_latents_are_made_again(replan: Replan, tmp_path: Path) -> None:
    ctx, first = train(replan(), tmp_path)
    run = own_run(ctx.plan)
    artifact = ctx.workspace.latents(run.dataset.dataset_id, "center")
    (file,) = artifact.path.glob("*.safetensors")
    damage(file)
    ctx.workspace.checkpoint(run.run_id, run.checkpoints[-1]).remove()
    _, again = train(ctx.plan, tmp_path)
    assert artifact.whole() and again == first


def test_drawing_from_stored_texts_is_the_same_to_the_bit(
    replan: Replan, tmp_path: Path, encoded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replan(
        arms=[
            {"name": "baseline"},
            {"name": "weighted", "negative": "(blurry)1.3, ugly++"},
            {"name": "wrong_lora", "adapters": [{"scale": 1.0}]},
        ],
        analysis={"primary": "clip_score", "control": "baseline", "resamples": 200},
    )
    _, first = draw_controls(plan, tmp_path / "w")
    assert set(encoded) == texts_of(plan, plan.control_arms[0].model)
    encoded.clear()
    ctx = bench_of(plan, tmp_path / "w")
    for arm in plan.control_arms:
        for chunk in ctx.workspace.image_chunks(arm.arm_id):
            chunk.remove()
    _, read = draw_controls(plan, tmp_path / "w")
    assert not encoded

    monkeypatch.setattr("harness.engine.stages.sampling.ensure_texts", lambda *_: None)
    _, computed = draw_controls(plan, tmp_path / "plain")
    assert encoded and len(first) == 2 * 2 * 2
    assert first == read == computed


def test_more_prompts_are_encoded_alone(replan: Replan, tmp_path: Path, encoded: list[Any]) -> None:
    draw_controls(replan(), tmp_path)
    encoded.clear()
    more = [{"text": text, "split": "dev"} for text in ("a green cat", "a new moon")]
    ctx, _ = draw_controls(replan(prompts=[*more, {"text": "a red star", "split": "test"}]), tmp_path)
    assert set(encoded) == {"a new moon"}
    assert len(ctx.workspace.text_chunks(texts_id(ctx.plan.control_arms[0].model))) == 2


def test_damaged_texts_are_made_again(replan: Replan, tmp_path: Path, encoded: list[Any]) -> None:
    ctx, first = draw_controls(replan(), tmp_path)
    (artifact,) = ctx.workspace.text_chunks(texts_id(ctx.plan.control_arms[0].model))
    damage(artifact.path / TEXTS)
    for arm in ctx.plan.control_arms:
        for chunk in ctx.workspace.image_chunks(arm.arm_id):
            chunk.remove()
    encoded.clear()
    _, again = draw_controls(ctx.plan, tmp_path)
    assert encoded and artifact.whole() and again == first


def test_a_text_that_cannot_be_encoded_hinders_no_other(tiny_config: SdxlModel, tmp_path: Path) -> None:
    first, second = load_model(tiny_config, device="cpu"), load_model(tiny_config, device="cpu")
    texts = {"a fox", "cat " * 100}
    first.texts.write(texts, tmp_path / TEXTS)
    second.texts.read(texts, tmp_path / TEXTS)
    assert first.texts.unknown(texts) == second.texts.unknown(texts) == texts - {"a fox"}


def test_a_image_that_the_vae_cannot_encode_is_left_to_training(
    replan: Replan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = vae.encode

    def overflowing(pipeline: Any, images: list[Any]) -> Any:
        posterior = encode(pipeline, images)
        posterior.mean_NChw[0, 0, 0, 0] = torch.nan
        return posterior

    monkeypatch.setattr(vae, "encode", overflowing)
    with pytest.raises(TrainingError, match=r"model\.vae"):
        train(replan(), tmp_path)


def test_the_store_keeps_what_a_sweep_has_encoded(replan: Replan, tmp_path: Path) -> None:
    ctx, _ = draw_controls(replan(), tmp_path / "w")
    train(ctx.plan, tmp_path / "w")
    ctx.workspace.sweep("small").mkdir(parents=True)
    write_plan(ctx.plan, ctx.workspace)
    kinds = {entry.kind: entry for entry in holdings(ctx.workspace).entries}
    assert kinds["latents"].needed_by == kinds["texts"].needed_by == ("small",)
    assert find(holdings(ctx.workspace), texts_id(own_run(ctx.plan).dataset.model)) == kinds["texts"]
    assert not verify(ctx.workspace, list(kinds.values()), delete=False)
    assert texts_in(kinds["texts"].place.artifact) == texts_of(ctx.plan, ctx.plan.control_arms[0].model)

    write_plan(
        replan(recipe={"kind": "plain", "prompts": ["a red fox"], "count": 3, "steps": 2}), ctx.workspace
    )
    gone = {finding.entry.kind for finding in collect_garbage(ctx.workspace, delete=True)}
    assert "latents" in gone and "texts" not in gone
    assert not (ctx.workspace.root / "latents" / own_run(ctx.plan).dataset.dataset_id).exists()
