"""Pictures somebody has, made fit for training."""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from harness.errors import SpecError
from harness.recipes.dataset import Sample
from harness.recipes.spec import FolderRecipe

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# What Pillow's decoders raise on a damaged file; UnidentifiedImageError is an OSError.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def scan(path: Path) -> tuple[str, int]:
    """The digest of the folder's pictures and their number. Reads and decodes every one.

    The digest is over the files' bytes in order of their names: renaming without changing the order
    changes nothing.

    Raises:
        SpecError: the folder is missing, holds no picture, or a picture in it cannot be read.
    """
    files = find_pictures(path)
    for file in files:
        read_picture(file)
    return digest_of(files), len(files)


def digest_of(files: Sequence[Path]) -> str:
    """sha256 over the sha256 of each file's bytes."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def find_pictures(path: Path) -> list[Path]:
    """Every picture below the folder, in order of their relative names. Hidden files are left out."""
    if not path.is_dir():
        raise SpecError(f"recipe.path: {path} is not a folder")
    found = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    names = {file.relative_to(path): file for file in found}
    visible = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not visible:
        raise SpecError(f"recipe.path: no pictures in {path}; allowed: {', '.join(SUFFIXES)}")
    return [names[name] for name in sorted(visible, key=lambda name: name.as_posix())]


def read_picture(file: Path) -> Image.Image:
    """The picture upright as its EXIF orientation says, RGB, transparency laid on white."""
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            layers = upright.convert("RGBA")
    except UNREADABLE as error:
        raise SpecError(f"recipe.path: {file} cannot be read as a picture: {error}") from error
    white = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(white, layers).convert("RGB")


def samples(recipe: FolderRecipe, *, resolution: int) -> Iterator[Sample]:
    """The pictures, resized and centre-cropped to the model's resolution. They have no captions."""
    files = find_pictures(recipe.path)
    if recipe.digest is not None and digest_of(files) != recipe.digest:
        raise SpecError(f"recipe.path: the pictures in {recipe.path} have changed since the sweep was read")
    for file in files:
        image = ImageOps.fit(read_picture(file), (resolution, resolution), Image.Resampling.LANCZOS)
        yield Sample(image=image)
