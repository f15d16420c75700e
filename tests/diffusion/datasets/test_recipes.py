"""The contract that every recipe keeps."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.config.schema.recipe import (
    DegradeRecipe,
    FolderRecipe,
    KeywordsRecipe,
    PlainRecipe,
    RecipeConfig,
)
from harness.diffusion.datasets import image_count, make_samples
from harness.diffusion.datasets.dataset import join_datasets, write_dataset
from harness.diffusion.models.model import Model

PROMPTS = ("a red fox", "the blue cat on a hat", "a moon")


def own_images(folder: Path) -> FolderRecipe:
    folder.mkdir(exist_ok=True)
    for index in range(5):
        Image.linear_gradient("L").rotate(90 * index).resize((80 + index, 70)).save(folder / f"{index}.png")
    return FolderRecipe(path=folder)


RECIPES: dict[str, Callable[[Path], RecipeConfig]] = {
    "keywords": lambda _: KeywordsRecipe(
        keywords=("blurry", "low quality"), guidance=(3, 8), steps=2, refiner_start=0.5
    ),
    "plain": lambda _: PlainRecipe(prompts=PROMPTS, count=5, steps=2, refiner_start=0.5),
    "degrade": lambda _: DegradeRecipe(
        prompts=PROMPTS, count=5, steps=2, refiner_start=0.5, degradations=("noise", "distort", "crop")
    ),
    "folder": lambda path: own_images(path / "images"),
}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> RecipeConfig:
    return RECIPES[request.param](tmp_path)


def build_dataset(
    recipe: RecipeConfig,
    model: Model,
    folder: Path,
    *,
    report: Callable[[int], None] = lambda _: None,
    indices: range | None = None,
    batch_size: int = 8,
) -> None:
    indices = indices or range(image_count(recipe))
    samples = make_samples(recipe, model, indices, batch_size=batch_size)
    write_dataset(samples, folder, first=indices.start, resolution=model.resolution, report=report)


def build(recipe: RecipeConfig, model: Model, folder: Path) -> list[dict[str, Any]]:
    build_dataset(recipe, model, folder, batch_size=3)
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_as_many_images_as_declared_each_reported(
    recipe: RecipeConfig, tiny_model: Model, tmp_path: Path
) -> None:
    reported: list[int] = []
    build_dataset(recipe, tiny_model, tmp_path / "data", report=reported.append)
    written = sorted((tmp_path / "data" / "images").iterdir())
    assert [file.name for file in written] == [f"{index:06d}.png" for index in range(len(written))]
    assert len(written) == image_count(recipe) == sum(reported)


def test_images_are_rgb_at_the_models_resolution(
    recipe: RecipeConfig, tiny_model: Model, tmp_path: Path
) -> None:
    """Drawn ones are square; a folder's keep their shape, the shorter side at the resolution."""
    for row in build(recipe, tiny_model, tmp_path / "data"):
        with Image.open(tmp_path / "data" / row["file_name"]) as image:
            assert (image.mode, min(image.size)) == ("RGB", tiny_model.resolution)
            assert all(side % 8 == 0 for side in image.size)
            if recipe.kind != "folder":
                assert (row["original_width"], row["original_height"]) == image.size == (64, 64)


def test_the_same_recipe_gives_the_same_captions_and_images(
    recipe: RecipeConfig, tiny_model: Model, tmp_path: Path
) -> None:
    assert build(recipe, tiny_model, tmp_path / "one") == build(recipe, tiny_model, tmp_path / "two")


def test_hashes_are_of_the_files_and_all_differ(
    recipe: RecipeConfig, tiny_model: Model, tmp_path: Path
) -> None:
    rows = build(recipe, tiny_model, tmp_path / "data")
    for row in rows:
        data = (tmp_path / "data" / row["file_name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
    if recipe.kind != "folder":
        assert len({row["sha256"] for row in rows}) == len(rows)


def test_every_recipe_writes_the_same_columns(
    recipe: RecipeConfig, tiny_model: Model, tmp_path: Path
) -> None:
    columns = [
        "file_name",
        "caption",
        "original_width",
        "original_height",
        "repeats",
        "prompt",
        "seed",
        "guidance",
        "degradation",
        "severity",
        "sha256",
    ]
    assert all(list(row) == columns for row in build(recipe, tiny_model, tmp_path / "data"))


def test_a_drawn_image_has_its_prompt_for_a_caption(
    recipe: RecipeConfig, tiny_model: Model, tmp_path: Path
) -> None:
    rows = build(recipe, tiny_model, tmp_path / "data")
    assert [row["caption"] for row in rows] == [row["prompt"] for row in rows]


DRAWN = [
    (
        KeywordsRecipe(keywords=("blurry", "grainy"), guidance=(3, 8), steps=2, refiner_start=0.5),
        "keywords",
        ("noisy", "grainy"),
    ),
    (
        KeywordsRecipe(keywords=("blurry", "grainy"), guidance=(3, 8), steps=2, refiner_start=0.5),
        "emphasis",
        0,
    ),
    (
        KeywordsRecipe(keywords=("blurry", "grainy"), guidance=(3, 8), steps=2, refiner_start=0.5),
        "guidance",
        (3, 9),
    ),
    (KeywordsRecipe(keywords=("blurry", "grainy"), guidance=(3, 8), steps=5), "refiner_start", None),
    (PlainRecipe(prompts=PROMPTS, count=4, steps=2, refiner_start=0.5), "prompts", ("a moon",)),
    (PlainRecipe(prompts=PROMPTS, count=4, steps=2, refiner_start=0.5), "guidance", 2.0),
    (PlainRecipe(prompts=PROMPTS, count=4, steps=2, refiner_start=0.5), "steps", 3),
    (PlainRecipe(prompts=PROMPTS, count=4, steps=2, refiner_start=0.5), "seed", 1),
    (
        DegradeRecipe(prompts=PROMPTS, count=4, steps=2, refiner_start=0.5, degradations=("blur",)),
        "degradations",
        ("noise",),
    ),
    (
        DegradeRecipe(prompts=PROMPTS, count=4, steps=2, refiner_start=0.5, degradations=("blur",)),
        "severity",
        (0.1, 0.2),
    ),
    (DegradeRecipe(prompts=PROMPTS, count=4, steps=2, refiner_start=0.5, degradations=("blur",)), "seed", 1),
]


@pytest.mark.parametrize(
    ("recipe", "field", "value"), DRAWN, ids=[f"{type(r).__name__}.{f}" for r, f, _ in DRAWN]
)
def test_every_field_changes_the_images(
    recipe: RecipeConfig, field: str, value: Any, tiny_model: Model, tmp_path: Path
) -> None:
    changed = type(recipe).model_validate(recipe.model_dump() | {field: value})
    before, after = build(recipe, tiny_model, tmp_path / "a"), build(changed, tiny_model, tmp_path / "b")
    assert {row["sha256"] for row in before} != {row["sha256"] for row in after}


def test_neighbouring_seeds_share_no_images(tiny_model: Model, tmp_path: Path) -> None:
    seeds = [
        {
            row["seed"]
            for row in build(
                PlainRecipe(prompts=PROMPTS, count=6, steps=1, refiner_start=None, seed=seed),
                tiny_model,
                tmp_path / str(seed),
            )
        }
        for seed in (0, 1)
    ]
    assert len(seeds[0] | seeds[1]) == 12


def test_a_sham_is_made_of_the_images_that_degrade_damages(tiny_model: Model, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"prompts": PROMPTS, "count": 4, "steps": 2, "refiner_start": 0.5, "seed": 7}
    good = build(PlainRecipe(**shared), tiny_model, tmp_path / "good")
    bad = build(DegradeRecipe(**shared, degradations=("blur",)), tiny_model, tmp_path / "bad")
    for column in ("prompt", "seed", "guidance"):
        assert [row[column] for row in good] == [row[column] for row in bad]
    assert not {row["sha256"] for row in good} & {row["sha256"] for row in bad}
    assert all(row["degradation"] is None for row in good)
    assert all(row["degradation"] == "blur" and 0.5 <= row["severity"] <= 1 for row in bad)


def test_counting_a_folder_does_not_need_a_model(tmp_path: Path) -> None:
    assert image_count(own_images(tmp_path / "images")) == 5


@pytest.mark.parametrize("name", ["keywords", "plain", "degrade"])
def test_drawn_in_parts_a_dataset_is_the_same(name: str, tiny_model: Model, tmp_path: Path) -> None:
    recipe = RECIPES[name](tmp_path)
    assert not isinstance(recipe, FolderRecipe)
    whole = build(recipe, tiny_model, tmp_path / "whole")
    parts = [tmp_path / "0", tmp_path / "2"]
    for part, indices in zip(parts, (range(2), range(2, image_count(recipe))), strict=True):
        build_dataset(recipe, tiny_model, part, indices=indices)
    join_datasets(parts, tmp_path / "joined")
    joined = [json.loads(line) for line in (tmp_path / "joined" / "metadata.jsonl").read_text().splitlines()]
    for row, alone in zip(joined, whole, strict=True):
        content = (tmp_path / "joined" / row["file_name"]).read_bytes()
        assert row.pop("sha256") == hashlib.sha256(content).hexdigest()
        del alone["sha256"]
        assert row == alone
        ours, theirs = (
            np.asarray(Image.open(tmp_path / folder / row["file_name"]), dtype=int)
            for folder in ("joined", "whole")
        )
        assert np.abs(ours - theirs).max() <= 1  # the products of so small a model have a kernel of their own
