import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from harness.config.plan.plan import Cell, Draw, DrawAdapter, cells
from harness.config.schema.adapter import TextualInversion
from harness.config.schema.evaluation import Branch, MergeSpec, Prompt, Scheduler
from harness.diffusion.adapters.files import LORA_FILE
from harness.diffusion.models.model import DrawSettings, Model, Row, RowAdapter
from harness.diffusion.sampling.generate import Part, draw_cells
from harness.diffusion.sampling.png import SAMPLERS
from harness.results import tables
from tests.diffusion.adapters.adapters import random_adapter

PROMPTS = (
    Prompt(text="a red fox", tags=("animal",), split="dev"),
    Prompt(text="a cup: café", split="dev"),
    Prompt(text="a tree", split="test"),
)


@pytest.fixture
def draw(tiny_model: Model) -> Draw:
    return Draw(
        draw_id="0123456789abcdef",
        arm="placebo",
        model=tiny_model.spec,
        negative="wrong",
        guidance=5.0,
        guidance_rescale=0.0,
        steps=6,
        scheduler=None,
        size=None,
        refiner_start=0.8,
        adapters=(),
        merge=None,
    )


@pytest.fixture(scope="module")
def adapter_folder(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(tiny_model, tmp_path_factory.mktemp("adapter"), seed=1)


def dev_cells(draw: Draw) -> list[Cell]:
    return list(cells(draw, PROMPTS, (0, 7), "dev"))


def trained(*, run_id: str, steps: int, scale: float, branch: Branch) -> DrawAdapter:
    return DrawAdapter(
        run_id=run_id, steps=steps, weights="last", file=None, digest=None, scale=scale, branch=branch
    )


def no_folder(adapter: DrawAdapter) -> Path:
    raise AssertionError("no adapter is asked for")


def test_writes_the_models_pictures_and_a_row_for_each(tiny_model: Model, draw: Draw, tmp_path: Path):
    wanted = dev_cells(draw)
    draw_cells([Part(draw=draw, cells=wanted, folder=tmp_path)], tiny_model, no_folder)
    table = tables.read_table(tmp_path / "images.parquet", tables.IMAGES)
    assert sorted(file.name for file in tmp_path.glob("*.png")) == sorted(table["path"])
    assert list(table["image_id"]) == [cell.image_id for cell in wanted]
    assert list(table["path"]) == [f"{cell.image_id}.png" for cell in wanted]
    rows = [Row(prompt=c.prompt, negative="wrong", seed=c.seed, guidance=5.0) for c in wanted]
    expected = tiny_model.draw(rows, DrawSettings(steps=6, refiner_start=0.8))
    for row, cell, picture in zip(table.itertuples(), wanted, expected, strict=True):
        file = tmp_path / str(row.path)
        with Image.open(file) as image:
            assert np.array_equal(np.asarray(image), np.asarray(picture.image))
        assert row.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert row.latent_hash == picture.latent_hash
        assert (row.width, row.height, row.seed, row.prompt) == (64, 64, cell.seed, cell.prompt)
        assert (row.arm, row.negative, row.guidance, row.steps) == ("placebo", "wrong", 5.0, 6)
    assert (table["draw_seconds"] > 0).all()
    assert table["trial_id"].isna().all()
    assert [list(tags) for tags in table["tags"]] == [["animal"], ["animal"], [], []]


def test_the_same_cell_gives_the_same_bytes(tiny_model: Model, draw: Draw, tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw_cells([Part(draw=draw, cells=dev_cells(draw), folder=tmp_path / name)], tiny_model, no_folder)
    for file in (tmp_path / "one").glob("*.png"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_arms_share_their_starting_latents(
    tiny_model: Model, draw: Draw, adapter_folder: Path, tmp_path: Path
):
    acting = trained(run_id="run", steps=100, scale=1.0, branch="negative")
    arm = replace(draw, draw_id="fedcba9876543210", arm="wrong_lora", adapters=(acting,))
    found = []
    for one in (draw, arm):
        (tmp_path / one.arm).mkdir()
        draw_cells(
            [Part(draw=one, cells=dev_cells(one), folder=tmp_path / one.arm)],
            tiny_model,
            lambda _: adapter_folder,
        )
        found.append(tables.read_table(tmp_path / one.arm / "images.parquet", tables.IMAGES))
    assert list(found[0]["latent_hash"]) == list(found[1]["latent_hash"])
    assert not set(found[0]["image_id"]) & set(found[1]["image_id"])
    row = Row(
        prompt="a red fox",
        negative="wrong",
        seed=0,
        guidance=5.0,
        adapters=(RowAdapter(path=adapter_folder, scale=1.0, branch="negative"),),
    )
    [expected] = tiny_model.draw([row], DrawSettings(steps=6, refiner_start=0.8))
    with Image.open(tmp_path / "wrong_lora" / found[1]["path"][0]) as image:
        levels = np.abs(np.asarray(image).astype(int) - np.asarray(expected.image).astype(int))
    assert levels.max() <= 2
    with Image.open(tmp_path / "placebo" / found[0]["path"][0]) as image:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected.image).astype(int)).max() > 5


def test_the_picture_says_how_it_was_made(
    tiny_model: Model, draw: Draw, adapter_folder: Path, tmp_path: Path
):
    acting = trained(run_id="abc", steps=100, scale=0.5, branch="negative")
    draw = replace(draw, adapters=(acting,))
    [fox, *_, cup] = dev_cells(draw)
    draw_cells([Part(draw=draw, cells=[fox, cup], folder=tmp_path)], tiny_model, lambda _: adapter_folder)
    with Image.open(tmp_path / f"{fox.image_id}.png") as image:
        parameters, about = image.info["parameters"], json.loads(image.info["harness"])
    prompt, negative, settings = parameters.split("\n")
    assert (prompt, negative) == ("a red fox", "Negative prompt: wrong")
    digest = about["draw"]["adapters"][0]["sha256"]
    assert (
        settings
        == (
            f"Steps: 6, Sampler: Euler, CFG scale: 5, Seed: 0, Size: 64x64, Model: {tiny_model.spec.source}, "  # type: ignore[union-attr]
            f"Refiner: {tiny_model.spec.refiner}, Refiner switch at: 0.8, "  # type: ignore[union-attr]
            f'Lora hashes: "abc-100: {digest[:12]}", Lora scales: "abc-100: 0.5 negative"'
        )
    )
    data = (adapter_folder / "pytorch_lora_weights.safetensors").read_bytes()
    assert digest == hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert about["cell"]["image_id"] == fox.image_id and about["draw"]["draw_id"] == draw.draw_id
    assert about["draw"]["adapters"][0]["branch"] == "negative" and about["versions"]["torch"]
    with Image.open(tmp_path / f"{cup.image_id}.png") as image:
        assert image.info["parameters"].startswith("a cup: café\n")
        assert json.loads(image.info["harness"])["cell"]["prompt"] == "a cup: café"


def test_a_control_says_that_no_adapter_and_no_refiner_acted(tiny_model: Model, draw: Draw, tmp_path: Path):
    draw = replace(draw, negative="", refiner_start=None)
    [fox, *_] = dev_cells(draw)
    draw_cells([Part(draw=draw, cells=[fox], folder=tmp_path)], tiny_model, no_folder)
    with Image.open(tmp_path / f"{fox.image_id}.png") as image:
        parameters = image.info["parameters"]
    assert parameters.startswith("a red fox\nNegative prompt: \nSteps: 6, ")  # ComfyUI needs the empty line
    assert "Lora" not in parameters and "Refiner" not in parameters
    table = tables.read_table(tmp_path / "images.parquet", tables.IMAGES)
    assert table["refiner_start"].isna().all()


def test_every_setting_of_a_draw_reaches_the_picture_and_its_text(
    tiny_model: Model, draw: Draw, adapter_folder: Path, tmp_path: Path
):
    both = trained(run_id="abc", steps=100, scale=0.5, branch="both")
    file = replace(both, run_id=None, steps=None, file=adapter_folder / LORA_FILE, digest="0" * 64)
    draws = {
        "plain": draw,
        "size": replace(draw, size=(96, 64)),
        "rescale": replace(draw, guidance_rescale=0.7),
        "scheduler": replace(draw, scheduler="DPMSolverMultistepScheduler"),
        "adapters": replace(draw, adapters=(both, file)),
        "merge": replace(draw, adapters=(both, file), merge=MergeSpec(method="linear")),
    }
    pixels, texts = {}, {}
    for name, one in draws.items():
        (tmp_path / name).mkdir()
        [fox, *_] = dev_cells(one)
        draw_cells(
            [Part(draw=one, cells=[fox], folder=tmp_path / name)],
            tiny_model,
            lambda a: a.file or adapter_folder,
        )
        with Image.open(tmp_path / name / f"{fox.image_id}.png") as image:
            pixels[name], texts[name] = image.tobytes(), image.info["parameters"]
    assert len(set(pixels.values())) == len(draws)
    assert "Size: 96x64" in texts["size"] and "CFG Rescale: 0.7" in texts["rescale"]
    assert "Sampler: DPM++ 2M," in texts["scheduler"] and "Sampler: Euler," in texts["plain"]
    tags = "a red fox <lora:abc-100:0.5> <lora:pytorch_lora_weights:0.5>\n"
    assert texts["adapters"].startswith(tags)  # on both branches, as A1111 would apply them
    assert texts["merge"].startswith("a red fox\n") and "Lora merge: linear" in texts["merge"]


def test_every_sampler_has_a_name_for_people():
    assert SAMPLERS.keys() == set(get_args(Scheduler))
    assert len(set(SAMPLERS.values())) == len(SAMPLERS)


def test_readers_find_the_fields(tiny_model: Model, draw: Draw, tmp_path: Path):
    """As A1111 and ComfyUI split the last line: `name: value`, values with commas or colons in quotes."""
    draw = replace(draw, negative="bad: (wrong)++, ugly")
    [fox, *_] = dev_cells(draw)
    draw_cells([Part(draw=draw, cells=[fox], folder=tmp_path)], tiny_model, no_folder)
    with Image.open(tmp_path / f"{fox.image_id}.png") as image:
        text = image.info["parameters"]
    steps = text.rindex("\nSteps:")
    negative = text.rindex("\nNegative prompt:", 0, steps)
    assert text[:negative] == "a red fox" and text[negative + 18 : steps] == draw.negative
    fields = dict(re.findall(r'\s*([\w ]+):\s*("(?:\\.|[^"])+"|[^,]*)(?:,|$)', text[steps:].strip()))
    assert (fields["Steps"], fields["Sampler"], fields["CFG scale"], fields["Seed"]) == (
        "6",
        "Euler",
        "5",
        "0",
    )
    assert fields["Size"] == "64x64" and fields["Refiner switch at"] == "0.8"


def test_an_embedding_is_named_as_one(tiny_model: Model, draw: Draw, tmp_path: Path):
    embedding = TextualInversion(word="wrong", vectors=2)
    folder = random_adapter(tiny_model, tmp_path / "embedding", seed=1, adapter=embedding)
    acting = trained(run_id="abc", steps=100, scale=1.0, branch="both")
    draw = replace(draw, adapters=(acting,), steps=2, refiner_start=None)
    [fox, *_] = dev_cells(draw)
    draw_cells([Part(draw=draw, cells=[fox], folder=tmp_path)], tiny_model, lambda _: folder)
    with Image.open(tmp_path / f"{fox.image_id}.png") as image:
        text = image.info["parameters"]
    assert 'TI hashes: "abc-100: ' in text and "Lora" not in text and "<lora" not in text
