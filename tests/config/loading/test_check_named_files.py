"""What a sweep names is opened when it is read: adapters, held against the model, and captions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from harness.config.loading.check_named_files import about_files
from harness.config.plan.plan import expand
from harness.config.schema.sweep import SweepConfig
from harness.config.weights.header import not_finite
from harness.errors import ConfigError
from tests.config.example import TO_Q, load, lora
from tests.diffusion.original import write_original


def with_file(name: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"name": "placebo", "negative": "wrong"},
        {"name": "foreign", "negative": "wrong", "adapters": [{"file": name, **more}]},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
    ]


def refused(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **changes)
    text = str(caught.value)
    assert "\n" not in text and len(text) - len(str(tmp_path)) < 300, text
    return text


def test_a_lora_of_sdxl_is_taken_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    bundled: dict[str, Any] = {"bundle_emb.x.clip_l": np.ones((1, 768), np.float32)}
    lora(tmp_path / "mine.safetensors", **bundled)
    sweep = load(tmp_path, arms=with_file("mine.safetensors"))
    assert about_files(expand(sweep)) == [
        "mine.safetensors: layers: unet 2; left out: 1 × bundle_emb.x.clip_l (embeddings bundled with the "
        "LoRA: give them as a file of their own)"
    ]


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "448"])
def test_an_adapter_with_nan_is_refused_before_any_work(dtype: str, value: str, tmp_path: Path) -> None:
    numbers = torch.ones(3, 5, dtype=torch.float32)
    numbers[1, 2] = float(value)
    state = {
        "odd": torch.zeros(3, dtype=torch.uint8),
        "a": torch.ones(2, 2),
        "b": numbers.to(getattr(torch, dtype)),
    }
    save_torch(state, tmp_path / "mine.safetensors", {"word": "x"})
    is_finite = bool(state["b"].float().isfinite().all())
    assert not_finite(tmp_path / "mine.safetensors") == (None if is_finite else "b")


def test_where_an_adapter_has_nan_is_said(tmp_path: Path) -> None:
    odd: dict[str, Any] = {f"unet.{TO_Q}.lora_A.weight": np.full((2, 1280), np.nan, np.float32)}
    lora(tmp_path / "mine.safetensors", **odd)
    said = refused(tmp_path, arms=with_file("mine.safetensors"))
    assert "arms.foreign.adapters[0].file: mine.safetensors has NaN or infinity in unet.mid_block" in said


def test_a_folder_that_an_adapter_was_saved_in(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lora(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    [adapter] = load(tmp_path, arms=with_file("out")).arms[1].adapters
    assert adapter.file == tmp_path / "out" / "pytorch_lora_weights.safetensors"
    (tmp_path / "empty").mkdir()
    assert "give the file itself" in refused(tmp_path, arms=with_file("empty"))


def test_settings_of_pefts_folder_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lora(tmp_path / "out" / "adapter_model.safetensors")
    digests = set()
    for alpha in (1, 2):
        (tmp_path / "out" / "adapter_config.json").write_text(f'{{"r": 2, "lora_alpha": {alpha}}}')
        [adapter] = load(tmp_path, arms=with_file("out")).arms[1].adapters
        digests.add(adapter.digest)
    assert len(digests) == 2


@pytest.mark.parametrize("sizes", [{"text": 768}, {"width": 640}], ids=["sd15", "narrow"])
def test_a_lora_of_another_model(tmp_path: Path, sizes: dict[str, int]) -> None:
    lora(tmp_path / "sd15.safetensors", **sizes)
    text = refused(tmp_path, arms=with_file("sd15.safetensors"))
    assert "arms.foreign.adapters[0].file: sd15.safetensors is of another model" in text


def test_against_the_embedded_model(tmp_path: Path) -> None:
    lora(tmp_path / "sdxl.safetensors")
    text = refused(tmp_path, arms=with_file("sdxl.safetensors"), model={"kind": "emoji"})
    assert "sdxl.safetensors" in text and "another model" in text


def test_a_model_in_one_file_is_described(tmp_path: Path, tiny_folder: Path) -> None:
    file = write_original(tiny_folder, tmp_path / "mine.safetensors", v_pred=torch.zeros(0))
    model = {"kind": "sdxl", "source": str(file), "config": str(tiny_folder), "vae": None}
    assert about_files(expand(load(tmp_path, model=model))) == [
        "mine.safetensors: SDXL in one file (UNet, two text encoders, VAE), predicts v"
    ]
    training = {"min_snr_gamma": 5, "min_snr_v": "diffusers"}
    load(tmp_path, model=model, training=training)
    assert "predicts epsilon" in refused(
        tmp_path, model={**model, "prediction_type": "epsilon"}, training=training
    )


def test_what_is_no_adapter(tmp_path: Path) -> None:
    save_file({"hello": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    assert "hello is no tensor of a LoRA" in refused(tmp_path, arms=with_file("x.safetensors"))
    (tmp_path / "y.safetensors").write_bytes(b"cut")
    assert "y.safetensors cannot be read" in refused(tmp_path, arms=with_file("y.safetensors"))


def test_an_embedding_of_another_model_or_without_its_start(tmp_path: Path) -> None:
    def embedding(name: str, first: int) -> None:
        vectors = {"clip_l": np.ones((1, first), np.float32), "clip_g": np.ones((1, 1280), np.float32)}
        save_file(vectors, tmp_path / name)

    embedding("wrong.safetensors", 768)
    text = refused(tmp_path, arms=with_file("wrong.safetensors", scale=0.5))
    assert "scale 1 alone, not 0.5" in text
    embedding("ugly.safetensors", 768)
    text = refused(tmp_path, arms=with_file("ugly.safetensors"))
    assert "stands for 'ugly' on branch negative, so arms.foreign.negative must hold it as a word" in text
    text = refused(tmp_path, arms=with_file("ugly.safetensors", branch="positive"))
    assert "so one of the prompts must hold it as a word" in text
    embedding("fox.safetensors", 1024)
    text = refused(tmp_path, arms=with_file("fox.safetensors", branch="positive"), model={"kind": "emoji"})
    assert "fox.safetensors has clip_l of width 1024" in text


class TestTrialsThatAreFiles:
    """A sweep that only evaluates: files, folders of checkpoints and the hub, without recipe and training."""

    ARMS = (
        {"name": "placebo", "negative": "wrong"},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
    )

    def load(self, tmp_path: Path, **changes: Any) -> SweepConfig:
        return load(tmp_path, **{"recipe": None, "arms": list(self.ARMS), **changes})

    def test_a_folder_of_checkpoints_in_order(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        for rank, name in enumerate(("wrong", "wrong-000010", "wrong-000002"), 1):
            lora(tmp_path / "out" / f"{name}.safetensors", rank=rank)
        plan = expand(self.load(tmp_path, axes={"adapter.file": "out"}))
        assert [t.params["adapter"] for t in plan.trials] == ["wrong-000002", "wrong-000010", "wrong"]
        assert not plan.runs and not plan.datasets
        assert [arm.arm for arm in plan.control_arms] == ["placebo"]
        assert len(plan.file_arms) == 3 and {t.run_id for t in plan.trials} == {None}
        (tmp_path / "out").rename(tmp_path / "moved")
        moved = expand(self.load(tmp_path, axes={"adapter.file": ["moved/wrong-*.safetensors"]}))
        assert [t.trial_id for t in moved.trials] == [t.trial_id for t in plan.trials[:2]]
        assert "no .safetensors file" in self.refused(tmp_path, axes={"adapter.file": "moved/x*"})

    def test_one_file_and_one_of_the_hub(self, tmp_path: Path) -> None:
        lora(tmp_path / "a.safetensors")
        hub = {"id": "someone/some-lora", "revision": "abc"}
        adapters = [{"kind": "file", "file": "a.safetensors"}, {"kind": "file", "hub": hub}]
        plan = expand(self.load(tmp_path, axes={"adapter": adapters}))
        assert [t.params["adapter"] for t in plan.trials] == ["a", "some-lora"]
        other = [adapters[0], {"kind": "file", "hub": {**hub, "revision": "def"}}]
        again = expand(self.load(tmp_path, axes={"adapter": other}))
        assert [a.trial_id == b.trial_id for a, b in zip(plan.trials, again.trials, strict=True)] == [
            True,
            False,
        ]

    def refused(self, tmp_path: Path, **changes: Any) -> str:
        return refused(tmp_path, **{"recipe": None, "arms": list(self.ARMS), **changes})

    def test_what_is_not_used_is_an_error(self, tmp_path: Path) -> None:
        lora(tmp_path / "a.safetensors")
        own = {"adapter": {"kind": "file", "file": "a.safetensors"}, "axes": {}}
        recipe = {"kind": "keywords", "keywords": ["ugly"]}
        assert "recipe is not used by adapter.kind: file" in self.refused(tmp_path, **own, recipe=recipe)
        assert "training is not used" in self.refused(tmp_path, **own, training={"steps": 3})
        assert "recipe is missing" in self.refused(tmp_path, axes={})
        sham = {"name": "sham", "adapters": [{"recipe": {"kind": "plain", "prompts": ["a cat"]}}]}
        text = self.refused(tmp_path, **own, arms=[*self.ARMS, sham])
        assert "arms.sham.adapters[0]: recipe is not used by adapter.kind: file" in text
        text = self.refused(
            tmp_path,
            **own,
            scheduler={"kind": "asha", "grace": 2, "objective": {"kind": "contrast", "prompts": 1}},
        )
        assert "scheduler.grace" in text

    def test_a_file_of_another_model_is_refused(self, tmp_path: Path) -> None:
        lora(tmp_path / "a.safetensors", text=768)
        text = self.refused(tmp_path, axes={"adapter.file": ["a.safetensors"]})
        assert "adapter.file: a.safetensors is of another model" in text


TRAINED: dict[str, Any] = {"model": {"kind": "emoji"}, "recipe": {"kind": "folder", "path": "mine"}}


class TestCaptions:
    def folder(self, tmp_path: Path, *captions: str) -> None:
        (tmp_path / "mine").mkdir()
        for number, caption in enumerate(captions):
            Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "mine" / f"{number}.png")
            (tmp_path / "mine" / f"{number}.txt").write_text(caption)

    def test_one_that_would_be_cut_is_named(self, tmp_path: Path) -> None:
        self.folder(tmp_path, "a cat", "a cat on grass " * 30, "a dog " * 40)
        text = refused(tmp_path, **TRAINED, training={"prompt": "wrong {caption}"})
        assert "training.prompt: with the caption of 1.png it has" in text and "so do 1 others" in text

    def test_they_are_looked_at_only_where_they_are_used(self, tmp_path: Path) -> None:
        self.folder(tmp_path, "a cat on grass " * 30)
        load(tmp_path, **TRAINED, training={"prompt": "wrong"})
