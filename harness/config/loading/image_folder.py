"""The number of images of a recipe, known before any is made; and the files of image folders."""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from harness.config.schema.recipe import RecipeConfig
from harness.errors import ConfigError


def image_count(recipe: RecipeConfig) -> int:
    """How many images a recipe has. Looks into a folder recipe's folder if need be."""
    if recipe.count is not None:
        return recipe.count

    return scan(recipe.path).images


METADATA = "metadata.jsonl"  # beside images, a row for each: a user's folder and a dataset alike
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


class Scan(NamedTuple):
    """What is known of a folder once every image of it has been read."""

    digest: str
    images: int
    captioned: bool  # whether every image has a caption


def scan(path: Path) -> Scan:
    """Read and decode every image of the folder.

    Raises:
        ConfigError: the folder is missing, holds no image, or an image or a caption cannot be read.
    """
    files = find_images(path)
    for file in files:
        read_image(file)
    captions = read_captions(path, files)
    return Scan(
        digest=digest_of(path, files, captions), images=len(files), captioned=None not in captions.values()
    )


def digest_of(path: Path, files: Sequence[Path], captions: Mapping[Path, str | None]) -> str:
    """sha256 over each image's name in the folder, the sha256 of its bytes, and its caption.

    The names count because they give the order, and because `repeats` picks images by them.
    """
    digest = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(json.dumps([name_of(path, file), content, captions[file]]).encode())
    return digest.hexdigest()


def find_images(path: Path) -> list[Path]:
    """Every image below the folder, in order of their relative names. Hidden files are left out."""
    if not path.is_dir():
        raise ConfigError(f"recipe.path: {path} is not a folder")
    found = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    names = {file.relative_to(path): file for file in found}
    visible = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not visible:
        raise ConfigError(f"recipe.path: no images in {path}; allowed: {', '.join(SUFFIXES)}")
    return [names[name] for name in sorted(visible, key=lambda name: name.as_posix())]


def read_image(file: Path) -> Image.Image:
    """The image upright as its EXIF orientation says, RGB, transparency laid on white."""
    try:
        with Image.open(file) as opened:
            upright = ImageOps.exif_transpose(opened)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            layers = upright.convert("RGBA")
    except UNREADABLE as error:
        raise ConfigError(f"recipe.path: {file} cannot be read as an image: {error}") from error
    white = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(white, layers).convert("RGB")


def read_captions(path: Path, files: Sequence[Path]) -> dict[Path, str | None]:
    """Each image's caption: its text file's, else its `text` in `metadata.jsonl`, else None.

    Space around it is left out, and an empty one is none. Raises ConfigError where one cannot be read.
    """
    listed = _listed_captions(path)
    captions: dict[Path, str | None] = {}
    for file in files:
        text = file.with_suffix(".txt")
        try:
            caption = (
                text.read_text(encoding="utf-8") if text.is_file() else listed.get(name_of(path, file), "")
            )
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe.path: the caption {text} cannot be read: {error}") from error
        captions[file] = caption.strip() or None
    return captions


def _listed_captions(path: Path) -> dict[str, str]:
    """The captions in the folder's `metadata.jsonl`, by the images' names; some may have none."""
    file, found = path / METADATA, {}
    if not file.is_file():
        return {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line) if line.strip() else {}
            if "text" in row:
                found[row["file_name"]] = row["text"]
                if not isinstance(row["text"], str):
                    raise TypeError("text must be a string")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"recipe.path: {file} has a line that is not a JSON object with file_name and text "
            f"({type(error).__name__}: {error})"
        ) from error
    return found


def name_of(path: Path, file: Path) -> str:
    """A file as a folder's metadata names it: relative to the folder, with forward slashes."""
    return file.relative_to(path).as_posix()
