import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.config.plan.plan import Cell, ResolvedAdapter, ResolvedArm, cells, noise_seed
from harness.config.schema.adapter import TextualInversion
from harness.config.schema.evaluation import ApgGuider, Branch, CfgGuider, MergeConfig, Prompt, Scheduler
from harness.config.schema.model import SdxlModel
from harness.config.weights.layout import LORA_FILE
from harness.diffusion.models.model import Model, Row, RowAdapter, SamplerSettings
from harness.diffusion.sampling.generate import Part, generate_cells
from harness.diffusion.sampling.png import SAMPLERS
from harness.results import tables
from tests.diffusion.adapters.adapters import random_adapter

PROMPTS = (
    Prompt(text="a red fox", tags=("animal",), split="dev"),
    Prompt(text="a cup: café", split="dev"),
    Prompt(text="a tree", split="test"),
)


@pytest.fixture
def arm(tiny_model: Model) -> ResolvedArm:
    return ResolvedArm(
        arm_id="0123456789abcdef",
        arm="placebo",
        model=tiny_model.config,
        negative="wrong",
        guidance=5.0,
        guidance_interval=None,
        guidance_rescale=0.0,
        guider=CfgGuider(),
        steps=6,
        scheduler=None,
        size=None,
        noise="per_prompt",
        refiner_start=0.8,
        adapters=(),
        merge=None,
    )


@pytest.fixture(scope="module")
def adapter_folder(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(tiny_model, tmp_path_factory.mktemp("adapter"), seed=1)


def dev_cells(arm: ResolvedArm) -> list[Cell]:
    return list(cells(arm, PROMPTS, (0, 7), "dev"))


def trained(*, run_id: str, steps: int, scale: float, branch: Branch) -> ResolvedAdapter:
    return ResolvedAdapter(
        run_id=run_id,
        steps=steps,
        weights="last",
        file=None,
        hub=None,
        digest=None,
        scale=scale,
        branch=branch,
    )


def no_folder(adapter: ResolvedAdapter) -> Path:
    raise AssertionError("no adapter is asked for")


def test_writes_the_models_images_and_a_row_for_each(tiny_model: Model, arm: ResolvedArm, tmp_path: Path):
    wanted = dev_cells(arm)
    [part] = generate_cells([Part(arm=arm, cells=wanted, folder=tmp_path)], tiny_model, no_folder)
    table = tables.typed(pd.DataFrame(part.rows), tables.IMAGES)
    assert sorted(file.name for file in tmp_path.glob("*.png")) == sorted(table["path"])
    assert list(table["image_id"]) == [cell.image_id for cell in wanted]
    assert list(table["path"]) == [f"{cell.image_id}.png" for cell in wanted]
    rows = [Row(prompt=c.prompt, negative="wrong", seed=c.noise_seed, guidance=5.0) for c in wanted]
    expected = tiny_model.generate(rows, SamplerSettings(steps=6, refiner_start=0.8))
    for row, cell, image in zip(table.itertuples(), wanted, expected, strict=True):
        file = tmp_path / str(row.path)
        with Image.open(file) as opened:
            assert np.array_equal(np.asarray(opened), np.asarray(image.image))
        assert row.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert row.latent_hash == image.latent_hash
        assert (row.width, row.height, row.seed, row.prompt) == (64, 64, cell.seed, cell.prompt)
        assert (row.arm, row.negative, row.guidance, row.steps) == ("placebo", "wrong", 5.0, 6)
    assert (table["generation_seconds"] > 0).all()
    assert table["trial_id"].isna().all()
    assert [list(tags) for tags in table["tags"]] == [["animal"], ["animal"], [], []]


def test_the_same_cell_gives_the_same_bytes(tiny_model: Model, arm: ResolvedArm, tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        generate_cells([Part(arm=arm, cells=dev_cells(arm), folder=tmp_path / name)], tiny_model, no_folder)
    for file in (tmp_path / "one").glob("*.png"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_arms_share_their_starting_latents(
    tiny_model: Model, arm: ResolvedArm, adapter_folder: Path, tmp_path: Path
):
    acting = trained(run_id="run", steps=100, scale=1.0, branch="negative")
    own = replace(arm, arm_id="fedcba9876543210", arm="wrong_lora", adapters=(acting,))
    found = []
    for one in (arm, own):
        (tmp_path / one.arm).mkdir()
        [part] = generate_cells(
            [Part(arm=one, cells=dev_cells(one), folder=tmp_path / one.arm)],
            tiny_model,
            lambda _: adapter_folder,
        )
        found.append(pd.DataFrame(part.rows))
    assert list(found[0]["latent_hash"]) == list(found[1]["latent_hash"])
    assert not set(found[0]["image_id"]) & set(found[1]["image_id"])
    row = Row(
        prompt="a red fox",
        negative="wrong",
        seed=noise_seed("a red fox", 0),
        guidance=5.0,
        adapters=(RowAdapter(path=adapter_folder, scale=1.0, branch="negative"),),
    )
    [expected] = tiny_model.generate([row], SamplerSettings(steps=6, refiner_start=0.8))
    with Image.open(tmp_path / "wrong_lora" / found[1]["path"][0]) as image:
        levels = np.abs(np.asarray(image).astype(int) - np.asarray(expected.image).astype(int))
    assert levels.max() <= 2
    with Image.open(tmp_path / "placebo" / found[0]["path"][0]) as image:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected.image).astype(int)).max() > 5


def test_the_image_says_how_it_was_made(
    tiny_model: Model, arm: ResolvedArm, adapter_folder: Path, tmp_path: Path
):
    acting = trained(run_id="abc", steps=100, scale=0.5, branch="negative")
    arm = replace(arm, adapters=(acting,))
    [fox, *_, cup] = dev_cells(arm)
    generate_cells([Part(arm=arm, cells=[fox, cup], folder=tmp_path)], tiny_model, lambda _: adapter_folder)
    with Image.open(tmp_path / f"{fox.image_id}.png") as image:
        parameters, about = image.info["parameters"], json.loads(image.info["harness"])
    prompt, negative, settings = parameters.split("\n")
    assert (prompt, negative) == ("a red fox", "Negative prompt: wrong")
    digest = about["arm"]["adapters"][0]["sha256"]
    model = tiny_model.config
    assert isinstance(model, SdxlModel)
    assert settings == (
        f"Steps: 6, Sampler: Euler, CFG scale: 5, Seed: {fox.noise_seed}, Size: 64x64, "
        f"Model: {model.source}, "
        f"Refiner: {model.refiner}, Refiner switch at: 0.8, "
        f'Lora hashes: "abc-100: {digest[:12]}", Lora scales: "abc-100: 0.5 negative"'
    )
    data = (adapter_folder / "pytorch_lora_weights.safetensors").read_bytes()
    assert digest == hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert about["cell"]["image_id"] == fox.image_id and about["arm"]["arm_id"] == arm.arm_id
    assert about["arm"]["adapters"][0]["branch"] == "negative" and about["versions"]["torch"]
    with Image.open(tmp_path / f"{cup.image_id}.png") as image:
        assert image.info["parameters"].startswith("a cup: café\n")
        assert json.loads(image.info["harness"])["cell"]["prompt"] == "a cup: café"


def test_a_control_says_that_no_adapter_and_no_refiner_acted(
    tiny_model: Model, arm: ResolvedArm, tmp_path: Path
):
    arm = replace(arm, negative="", refiner_start=None)
    [fox, *_] = dev_cells(arm)
    [part] = generate_cells([Part(arm=arm, cells=[fox], folder=tmp_path)], tiny_model, no_folder)
    with Image.open(tmp_path / f"{fox.image_id}.png") as image:
        parameters = image.info["parameters"]
    assert parameters.startswith("a red fox\nNegative prompt: \nSteps: 6, ")  # ComfyUI needs the empty line
    assert "Lora" not in parameters and "Refiner" not in parameters
    assert [row["refiner_start"] for row in part.rows] == [None]


def test_every_setting_of_a_draw_reaches_the_image_and_its_text(
    tiny_model: Model, arm: ResolvedArm, adapter_folder: Path, tmp_path: Path
):
    both = trained(run_id="abc", steps=100, scale=0.5, branch="both")
    file = replace(both, run_id=None, steps=None, file=adapter_folder / LORA_FILE, digest="0" * 64)
    arms = {
        "plain": arm,
        "size": replace(arm, size=(96, 64)),
        "rescale": replace(arm, guidance_rescale=0.7),
        "interval": replace(arm, guidance_interval=(0.0, 0.5)),
        "guider": replace(arm, guider=ApgGuider(eta=0.0)),
        "itself": replace(arm, negative="{prompt}", adapters=(replace(both, branch="negative"),)),
        "scheduler": replace(arm, scheduler="DPMSolverMultistepScheduler"),
        "adapters": replace(arm, adapters=(both, file)),
        "merge": replace(arm, adapters=(both, file), merge=MergeConfig(method="linear")),
    }
    pixels, texts = {}, {}
    for name, one in arms.items():
        (tmp_path / name).mkdir()
        [fox, *_] = dev_cells(one)
        generate_cells(
            [Part(arm=one, cells=[fox], folder=tmp_path / name)],
            tiny_model,
            lambda a: a.file or adapter_folder,
        )
        with Image.open(tmp_path / name / f"{fox.image_id}.png") as image:
            pixels[name], texts[name] = image.tobytes(), image.info["parameters"]
    assert len(set(pixels.values())) == len(arms)
    assert "Size: 96x64" in texts["size"] and "CFG Rescale: 0.7" in texts["rescale"]
    assert "CFG interval: 0 to 0.5" in texts["interval"] and "Guider: apg" in texts["guider"]
    assert "Negative prompt: a red fox\n" in texts["itself"]
    assert "Sampler: DPM++ 2M," in texts["scheduler"] and "Sampler: Euler," in texts["plain"]
    tags = "a red fox <lora:abc-100:0.5> <lora:pytorch_lora_weights:0.5>\n"
    assert texts["adapters"].startswith(tags)  # on both branches, as A1111 would apply them
    assert texts["merge"].startswith("a red fox\n") and "Lora merge: linear" in texts["merge"]


def test_every_sampler_has_a_name_for_people():
    assert SAMPLERS.keys() == set(get_args(Scheduler))
    assert len(set(SAMPLERS.values())) == len(SAMPLERS)


def test_readers_find_the_fields(tiny_model: Model, arm: ResolvedArm, tmp_path: Path):
    """As A1111 and ComfyUI split the last line: `name: value`, values with commas or colons in quotes."""
    arm = replace(arm, negative="bad: (wrong)++, ugly")
    [fox, *_] = dev_cells(arm)
    generate_cells([Part(arm=arm, cells=[fox], folder=tmp_path)], tiny_model, no_folder)
    with Image.open(tmp_path / f"{fox.image_id}.png") as image:
        text = image.info["parameters"]
    steps = text.rindex("\nSteps:")
    negative = text.rindex("\nNegative prompt:", 0, steps)
    assert text[:negative] == "a red fox" and text[negative + 18 : steps] == arm.negative
    fields = dict(re.findall(r'\s*([\w ]+):\s*("(?:\\.|[^"])+"|[^,]*)(?:,|$)', text[steps:].strip()))
    assert (fields["Steps"], fields["Sampler"], fields["CFG scale"], fields["Seed"]) == (
        "6",
        "Euler",
        "5",
        str(noise_seed("a red fox", 0)),
    )
    assert fields["Size"] == "64x64" and fields["Refiner switch at"] == "0.8"


def test_an_embedding_is_named_as_one(tiny_model: Model, arm: ResolvedArm, tmp_path: Path):
    embedding = TextualInversion(word="wrong", vectors=2)
    folder = random_adapter(tiny_model, tmp_path / "embedding", seed=1, adapter=embedding)
    acting = trained(run_id="abc", steps=100, scale=1.0, branch="both")
    arm = replace(arm, adapters=(acting,), steps=2, refiner_start=None)
    [fox, *_] = dev_cells(arm)
    generate_cells([Part(arm=arm, cells=[fox], folder=tmp_path)], tiny_model, lambda _: folder)
    with Image.open(tmp_path / f"{fox.image_id}.png") as image:
        text = image.info["parameters"]
    assert 'TI hashes: "abc-100: ' in text and "Lora" not in text and "<lora" not in text
