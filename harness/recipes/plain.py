"""The model's own pictures of plain prompts, untouched: what a sham adapter is trained on."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.models.model import Row
from harness.recipes.dataset import Sample
from harness.recipes.drawing import draw_images, picture_seed
from harness.recipes.spec import DegradeRecipe, PlainRecipe

if TYPE_CHECKING:
    from harness.models.model import Model


def rows(recipe: PlainRecipe | DegradeRecipe) -> list[Row]:
    """`count` rows, the prompts in turn, each picture with a seed of its own; no negative prompt.

    `degrade` draws from the same rows: with equal prompts, count, guidance and seed, a sham's pictures
    are the very ones that `degrade` damages.
    """
    return [
        Row(
            prompt=recipe.prompts[index % len(recipe.prompts)],
            negative="",
            seed=picture_seed(recipe.seed, index),
            guidance=recipe.guidance,
        )
        for index in range(recipe.count)
    ]


def samples(
    recipe: PlainRecipe | DegradeRecipe, model: "Model", indices: range, *, batch_size: int
) -> Iterator[Sample]:
    """The drawn pictures with these numbers. A caption is the prompt it was drawn from."""
    drawn = rows(recipe)[indices.start : indices.stop]
    for row, image in zip(drawn, draw_images(drawn, recipe, model, batch_size=batch_size), strict=True):
        yield Sample(image=image, caption=row.prompt, prompt=row.prompt, seed=row.seed, guidance=row.guidance)
