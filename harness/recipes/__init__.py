"""How training pictures are made: drawn from words for bad, damaged afterwards, or somebody's own."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.recipes.counting import picture_count
from harness.recipes.spec import DegradeRecipe, FolderRecipe, KeywordsRecipe, PlainRecipe, RecipeSpec

if TYPE_CHECKING:
    from harness.models.model import Model
    from harness.recipes.dataset import Sample

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
    from harness.recipes import degrade, folder, keywords, plain

    match recipe:
        case KeywordsRecipe():
            return keywords.samples(recipe, model, indices, batch_size=batch_size)
        case PlainRecipe():
            return plain.samples(recipe, model, indices, batch_size=batch_size)
        case DegradeRecipe():
            return degrade.samples(recipe, model, indices, batch_size=batch_size)
        case FolderRecipe():
            return folder.samples(recipe, resolution=model.resolution)
