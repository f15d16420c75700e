"""How training pictures are made: drawn from words for bad, damaged afterwards, or somebody's own."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.config.loading.image_folder import picture_count
from harness.config.schema.recipe import DegradeRecipe, FolderRecipe, KeywordsRecipe, PlainRecipe, RecipeSpec

if TYPE_CHECKING:
    from harness.diffusion.datasets.dataset import Sample
    from harness.diffusion.models.model import Model


__all__ = ["make_samples", "picture_count"]


def make_samples(
    recipe: RecipeSpec, model: "Model", indices: range, *, batch_size: int
) -> Iterator["Sample"]:
    """The recipe's pictures with these numbers, of `picture_count` in all; `dataset.py` writes them.

    `batch_size` is how many are drawn at once. The same recipe and model give the same captions and the same
    pictures, whichever are made together. Somebody's own pictures are always all made.

    Raises:
        SpecError: a folder recipe's pictures are missing, broken, or not those the sweep was read with.
    """
    from harness.diffusion.datasets import folder
    from harness.diffusion.datasets.generated import degrade_samples, keywords_samples, plain_samples

    match recipe:
        case KeywordsRecipe():
            return keywords_samples(recipe, model, indices, batch_size=batch_size)
        case PlainRecipe():
            return plain_samples(recipe, model, indices, batch_size=batch_size)
        case DegradeRecipe():
            return degrade_samples(recipe, model, indices, batch_size=batch_size)
        case FolderRecipe():
            return folder.samples(recipe, resolution=model.resolution)
