"""Training images: generated from words for bad, generated and degraded, generated clean, or a folder."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.config.loading.image_folder import image_count
from harness.config.schema.recipe import (
    DegradeRecipe,
    FolderRecipe,
    KeywordsRecipe,
    PlainRecipe,
    RecipeConfig,
)

if TYPE_CHECKING:
    from harness.diffusion.datasets.dataset import Sample
    from harness.diffusion.models.model import Model


__all__ = ["image_count", "make_samples"]


def make_samples(
    recipe: RecipeConfig, model: "Model", indices: range, *, batch_size: int
) -> Iterator["Sample"]:
    """The recipe's images with these numbers, of `image_count` in all; `dataset.py` writes them.

    `batch_size` is how many are generated together. The same recipe and model give the same captions and
    images, whatever the batch. A folder's images are always read in full.

    Raises:
        ConfigError: a folder recipe's images are missing, broken, or not those the sweep was read with.
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
