"""The model's own pictures, damaged afterwards, each by one degradation at a severity of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from harness.recipes import plain
from harness.recipes.dataset import Sample
from harness.recipes.degradations import degrade
from harness.recipes.spec import DegradationName, DegradeRecipe

if TYPE_CHECKING:
    from harness.models.model import Model


def degradation_of(recipe: DegradeRecipe, index: int) -> DegradationName:
    """The degradation of picture number `index`: they take turns, shifted by one on each pass of the prompts.

    So every prompt meets every degradation, even where there are as many of the one as of the other.
    """
    passes, place = divmod(index, len(recipe.prompts))
    return recipe.degradations[(passes + place) % len(recipe.degradations)]


def samples(recipe: DegradeRecipe, model: "Model", indices: range, *, batch_size: int) -> Iterator[Sample]:
    """`plain`'s pictures of the same prompts and seed, damaged. Their captions stay."""
    drawn = plain.samples(recipe, model, indices, batch_size=batch_size)
    for index, sample in zip(indices, drawn, strict=True):
        rng = np.random.default_rng([recipe.seed, index])
        severity = float(rng.uniform(*recipe.severity))
        name = degradation_of(recipe, index)
        image = degrade(sample.image, name, severity=severity, rng=rng)
        yield replace(sample, image=image, degradation=name, severity=severity)
