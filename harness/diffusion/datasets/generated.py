"""Recipes that generate images with the model itself: keywords, plain and degraded.

`keywords` is the recipe of M. Woolf, "I Made Stable Diffusion XL Smarter by Finetuning it on Bad AI-Generated
Images" (2023): images of words for bad, each word in turn weighted up. `plain` images, of plain prompts,
train sham controls.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from harness.config.schema.recipe import DegradationName, DegradeRecipe, KeywordsRecipe, PlainRecipe
from harness.diffusion.datasets.dataset import Sample, generate_images, image_seed
from harness.diffusion.degradations import degrade
from harness.diffusion.models.model import Row

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model


def prompts(recipe: KeywordsRecipe) -> list[str]:
    """One prompt per keyword: all keywords, that one as `(keyword)++++` in compel's notation."""
    signs = "+" * recipe.emphasis
    return [
        ", ".join(
            f"({word}){signs}" if signs and place == weighted else word
            for place, word in enumerate(recipe.keywords)
        )
        for weighted in range(len(recipe.keywords))
    ]


def keywords_rows(recipe: KeywordsRecipe) -> list[Row]:
    """Guidance by guidance (rows of one guidance share a batch), each keyword; no negative prompt."""
    pairs = product(recipe.guidance, prompts(recipe))
    return [
        Row(prompt=prompt, negative="", seed=image_seed(recipe.seed, index), guidance=guidance)
        for index, (guidance, prompt) in enumerate(pairs)
    ]


def keywords_samples(
    recipe: KeywordsRecipe, model: "Model", indices: range, *, batch_size: int
) -> Iterator[Sample]:
    """The generated images with these numbers. A caption is the prompt it was generated from."""
    drawn = keywords_rows(recipe)[indices.start : indices.stop]
    for row, image in zip(drawn, generate_images(drawn, recipe, model, batch_size=batch_size), strict=True):
        yield Sample(image=image, caption=row.prompt, prompt=row.prompt, seed=row.seed, guidance=row.guidance)


def plain_rows(recipe: PlainRecipe | DegradeRecipe) -> list[Row]:
    """`count` rows, the prompts in turn, each image with a seed of its own; no negative prompt.

    `degrade` generates from the same rows: with equal prompts, count, guidance and seed, a sham's images
    are the very ones that `degrade` damages.
    """
    return [
        Row(
            prompt=recipe.prompts[index % len(recipe.prompts)],
            negative="",
            seed=image_seed(recipe.seed, index),
            guidance=recipe.guidance,
        )
        for index in range(recipe.count)
    ]


def plain_samples(
    recipe: PlainRecipe | DegradeRecipe, model: "Model", indices: range, *, batch_size: int
) -> Iterator[Sample]:
    """The generated images with these numbers. A caption is the prompt it was generated from."""
    drawn = plain_rows(recipe)[indices.start : indices.stop]
    for row, image in zip(drawn, generate_images(drawn, recipe, model, batch_size=batch_size), strict=True):
        yield Sample(image=image, caption=row.prompt, prompt=row.prompt, seed=row.seed, guidance=row.guidance)


def degradation_of(recipe: DegradeRecipe, index: int) -> DegradationName:
    """The degradation of image number `index`: they take turns, shifted by one on each pass of the prompts.

    So every prompt meets every degradation, even where there are as many of the one as of the other.
    """
    passes, place = divmod(index, len(recipe.prompts))
    return recipe.degradations[(passes + place) % len(recipe.degradations)]


def degrade_samples(
    recipe: DegradeRecipe, model: "Model", indices: range, *, batch_size: int
) -> Iterator[Sample]:
    """`plain`'s images of the same prompts and seed, damaged. Their captions stay."""
    drawn = plain_samples(recipe, model, indices, batch_size=batch_size)
    for index, sample in zip(indices, drawn, strict=True):
        rng = np.random.default_rng([recipe.seed, index])
        severity = float(rng.uniform(*recipe.severity))
        name = degradation_of(recipe, index)
        image = degrade(sample.image, name, severity=severity, rng=rng)
        yield replace(sample, image=image, degradation=name, severity=severity)
