"""How training pictures are made: drawn from words for bad, damaged afterwards, or somebody's own."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.recipes.counting import picture_count
from harness.recipes.spec import DegradeRecipe, FolderRecipe, KeywordsRecipe, PlainRecipe, RecipeSpec

if TYPE_CHECKING:
    from harness.models.model import Model

__all__ = ["build_dataset", "picture_count"]


def build_dataset(
    recipe: RecipeSpec, model: "Model", folder: Path, *, report: Callable[[int], None], batch_size: int = 8
) -> None:
    """Write the recipe's pictures to `folder/images/`, their captions and sizes to `folder/metadata.jsonl`.

    The layout is Hugging Face's `imagefolder`. `batch_size` is how many pictures are drawn at once;
    `report(n)` is called whenever n more pictures are written. The same recipe and model give the same
    captions and the same picture hashes.

    Raises:
        SpecError: a folder recipe's pictures are missing, broken, or not those the sweep was read with.
    """
    from harness.recipes import degrade, keywords, plain
    from harness.recipes import folder as own_pictures
    from harness.recipes.dataset import write_dataset

    match recipe:
        case KeywordsRecipe():
            samples = keywords.samples(recipe, model, batch_size=batch_size)
        case PlainRecipe():
            samples = plain.samples(recipe, model, batch_size=batch_size)
        case DegradeRecipe():
            samples = degrade.samples(recipe, model, batch_size=batch_size)
        case FolderRecipe():
            samples = own_pictures.samples(recipe, resolution=model.resolution)
    write_dataset(samples, folder, resolution=model.resolution, report=report)
