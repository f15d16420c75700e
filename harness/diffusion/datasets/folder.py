"""A folder of existing images, prepared for training."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from PIL import Image, ImageOps

from harness.config.loading.image_folder import (
    check_repeats,
    digest_of,
    find_images,
    name_of,
    read_captions,
    read_image,
)
from harness.config.schema.recipe import FolderRecipe
from harness.diffusion.datasets.dataset import SIDE_MULTIPLE, Sample
from harness.errors import ConfigError


def repeats_of(name: str, patterns: Mapping[str, int]) -> int:
    """How often an image is seen in each pass: the most that a pattern matching its name says, or once."""
    return max((times for pattern, times in patterns.items() if fnmatchcase(name, pattern)), default=1)


def samples(recipe: FolderRecipe, *, resolution: int) -> Iterator[Sample]:
    """The whole images, resized so that the shorter side is the model's resolution; see `fitted`."""
    files = find_images(recipe.path)
    captions, names = read_captions(recipe.path, files), [name_of(recipe.path, file) for file in files]
    if recipe.digest is not None and digest_of(recipe.path, files, captions) != recipe.digest:
        raise ConfigError(f"recipe.path: the images in {recipe.path} have changed since the sweep was read")
    check_repeats(recipe, names)
    for file, name in zip(files, names, strict=True):
        image = read_image(file)
        yield Sample(
            image=fitted(image, resolution=resolution),
            caption=captions[file],
            original_size=image.size,
            repeats=repeats_of(name, recipe.repeats),
        )


def fitted(image: Image.Image, *, resolution: int) -> Image.Image:
    """The image, its shorter side the resolution, its longer side rounded down to a multiple of 8.

    What the rounding leaves over is cut off evenly at both ends, so that nothing is squeezed.
    """
    scale = resolution / min(image.size)
    width, height = (
        max(resolution, int(side * scale + 1e-6) // SIDE_MULTIPLE * SIDE_MULTIPLE) for side in image.size
    )
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
