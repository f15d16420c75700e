"""The number of images of a recipe, known before any is made; and the files of image folders.

A folder is a user's: whatever is in it is read as it is meant, or left out or refused by name.
"""

import hashlib
import json
import os
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from harness.config.loading.files import lines_of, one_line, read_text
from harness.config.schema.recipe import FolderRecipe, RecipeConfig
from harness.errors import ConfigError


def image_count(recipe: RecipeConfig) -> int:
    """How many images a recipe has. Looks into a folder recipe's folder if need be."""
    if recipe.count is not None:
        return recipe.count

    return scan(recipe.path).images


METADATA = "metadata.jsonl"  # beside images, a row for each: a user's folder and a dataset alike
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # by content; Pillow's others are never tried, some of them run programs
OTHERS = frozenset(  # suffixes of images that are not read
    """.apng .arw .avif .bmp .cr2 .dng .exr .gif .heic .heif .ico .jfif .jp2 .jxl .nef .ppm .psd .qoi .svg
    .tga .tif .tiff""".split()  # noqa: SIM905 - a list of them takes a page
)
MOST_PIXELS = 2**26  # 8192²; in memory up to 0.3 GB
MOST_ELONGATED = 16  # longer side over shorter
SHORTEST_SIDE = 8
ORIENTATION = 0x0112  # of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
NAMED = 3  # of many files, the first so many are named


class Scan(NamedTuple):
    """What is known of a folder once every image of it has been read."""

    digest: str
    names: tuple[str, ...]
    captioned: bool  # whether every image has a caption
    left_out: tuple[str, ...]  # what is in the folder and not read, a line each

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.names)


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
        digest=digest_of(path, files, captions),
        names=tuple(name_of(path, file) for file in files),
        captioned=None not in captions.values(),
        left_out=tuple(_left_out(path, files)),
    )


def check_repeats(recipe: FolderRecipe, names: Sequence[str]) -> None:
    """Raise ConfigError for a pattern of `repeats` that names none of the images."""
    for pattern in recipe.repeats:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"recipe.repeats: no image in {recipe.path} is named {pattern!r:.80}")


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
    """Every image below the folder, in order of their relative names.

    Left out are hidden files, and links that lead out of the folder.
    """
    if not path.is_dir():
        raise ConfigError(f"recipe.path: {one_line(path)} is not a folder")
    found = [file for file in _files(path) if _is_image(path, file)]
    if not found:
        why = "".join(f"; {line}" for line in _left_out(path, found))
        raise ConfigError(f"recipe.path: no images in {one_line(path)}; allowed: {', '.join(SUFFIXES)}{why}")
    return sorted(found, key=lambda file: name_of(path, file))


def _files(path: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ConfigError(f"recipe.path: {error.filename} cannot be read: {error.strerror}")

    for where, _, names in os.walk(path, onerror=refuse):
        yield from (Path(where, name) for name in names)


def _is_image(path: Path, file: Path) -> bool:
    named = file.suffix.lower() in SUFFIXES and not _is_hidden(path, file)
    return named and file.is_file() and _is_inside(path, file)


def _is_hidden(path: Path, file: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(path).parts)


def _is_inside(path: Path, file: Path) -> bool:
    return file.resolve().is_relative_to(path.resolve())


def _left_out(path: Path, files: Sequence[Path]) -> Iterator[str]:
    """What a user may take for read, one line for each reason."""
    kept = set(files)
    rest = [file for file in _files(path) if file not in kept and not file.name.startswith("._")]
    images = [file for file in rest if file.suffix.lower() in (*SUFFIXES, *OTHERS)]
    hidden = [file for file in images if _is_hidden(path, file)]
    others = [file for file in images if file.suffix.lower() in OTHERS and file not in hidden]
    leading_out = [file for file in images if file.is_file() and not _is_inside(path, file)]
    folders = [Path(where, name) for where, names, _ in os.walk(path) for name in names]
    links = [folder for folder in folders if folder.is_symlink()]
    tables = [file for file in rest if file.name in ("metadata.csv", "metadata.parquet")]
    tables += [file for file in rest if file.name == METADATA and file.parent != path]
    for why, some in (
        ("not of a format that is read", others),
        ("hidden", hidden),
        ("links that lead out of the folder", [file for file in leading_out if file not in hidden]),
        ("linked folders", links),
        (f"lists of captions other than the folder's {METADATA}", tables),
    ):
        if some:
            yield f"left out, {why}: {_some([name_of(path, file) for file in some])}"
    _, unmatched = _listed_captions(path, files)
    if unmatched:
        yield f"left out, rows of {METADATA} without an image: {_some(unmatched)}"


def _some(names: Sequence[str]) -> str:
    """How many there are, and the first of them by name."""
    first = ", ".join(one_line(name) for name in sorted(names)[:NAMED])
    return f"{len(names)} ({first}{', …' if len(names) > NAMED else ''})"


def read_image(file: Path) -> Image.Image:
    """An image of a user's folder, as `decoded` gives it. Raises ConfigError where it cannot be taken."""
    try:
        return decoded(file)[0]
    except ConfigError as error:
        raise ConfigError(f"recipe.path: {error}") from error


def decoded(file: Path, formats: tuple[str, ...] = FORMATS) -> tuple[Image.Image, dict[str, str]]:
    """The image upright as its EXIF orientation says, 8-bit RGB, transparency laid on white; and its texts.

    Raises ConfigError for what cannot be read, is animated, or is larger or longer than any training image.
    """
    try:
        with warnings.catch_warnings(), file.open("rb") as stream:
            warnings.simplefilter("ignore")  # of Pillow, about metadata that is not used
            _check_shape(*_webp_size(stream))  # Pillow makes room for a WebP before it tells its size
            with Image.open(stream, formats=formats) as opened:
                _check_shape(*opened.size)
                if getattr(opened, "is_animated", False) and opened.format != "MPO":
                    raise ConfigError("it is animated; save one frame of it")
                opened.verify()  # a PNG's checksums, which decoding passes over
            stream.seek(0)
            with Image.open(stream, formats=formats) as opened:
                turn = TURNS.get(_orientation(opened))
                image = _rgb(opened)
                texts = {str(key): str(text) for key, text in opened.info.items() if isinstance(text, str)}
    except ConfigError as error:
        raise ConfigError(f"{one_line(file)} cannot be taken: {error}") from None
    except UnidentifiedImageError:
        allowed = " or ".join(", ".join(formats).rsplit(", ", 1))
        raise ConfigError(
            f"{one_line(file)} cannot be read as an image: its content is not {allowed}"
        ) from None
    except Exception as error:  # a damaged file leads Pillow's decoders to any error
        raise ConfigError(f"{one_line(file)} cannot be read as an image: {one_line(error)}") from error
    return (image if turn is None else image.transpose(turn)), texts


def _check_shape(width: int, height: int) -> None:
    """Before anything is decoded."""
    if width * height > MOST_PIXELS:
        raise ConfigError(f"{width} × {height} pixels are more than {MOST_PIXELS:,}; make it smaller")
    if min(width, height) < SHORTEST_SIDE or max(width, height) > MOST_ELONGATED * min(width, height):
        raise ConfigError(
            f"it is {width} × {height} pixels; allowed: {SHORTEST_SIDE} or more on each side, and at most "
            f"{MOST_ELONGATED} times as long as wide"
        )


def _webp_size(stream: BinaryIO) -> tuple[int, int]:
    """Of a WebP's canvas, by its first chunk (RFC 9649); of anything else, one that is allowed."""
    head = stream.read(30).ljust(30, b"\0")
    stream.seek(0)
    numbers = int.from_bytes(head[21:25], "little")
    match head[:4], head[8:12], head[12:16]:
        case b"RIFF", b"WEBP", b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        case b"RIFF", b"WEBP", b"VP8L":
            return (numbers & 0x3FFF) + 1, (numbers >> 14 & 0x3FFF) + 1
        case b"RIFF", b"WEBP", b"VP8 ":
            numbers = int.from_bytes(head[26:30], "little")
            return numbers & 0x3FFF, numbers >> 16 & 0x3FFF
    return SHORTEST_SIDE, SHORTEST_SIDE


def _orientation(opened: Image.Image) -> int:
    """EXIF's, 1 where there is none. Other tags are not looked at: broken ones change nothing."""
    try:
        value = opened.getexif().get(ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except Exception:  # metadata does not decide whether pixels can be read
        return 1


def _rgb(opened: Image.Image) -> Image.Image:
    if opened.mode.startswith("I"):
        return _from_16_bits(opened)
    if opened.mode == "F":
        raise ConfigError("its pixels are floating-point numbers; save it with 8 bits")
    if not opened.has_transparency_data:
        return opened.convert("RGB")
    layers = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _from_16_bits(opened: Image.Image) -> Image.Image:
    """Grey of 16 bits, 0 to 65535: Pillow's own conversion would make all above 255 white."""
    import numpy as np

    grey_HW = np.asarray(opened).astype(np.int64)
    eight_HW = ((grey_HW + 128) // 257).clip(0, 255).astype(np.uint8)
    if isinstance(clear := opened.info.get("transparency"), int):
        eight_HW[grey_HW == clear] = 255
    return Image.fromarray(eight_HW).convert("RGB")


def read_captions(path: Path, files: Sequence[Path]) -> dict[Path, str | None]:
    """Each image's caption: its text file's, else its row's in `metadata.jsonl`, else None.

    Space around it is left out, and an empty one is none. Raises ConfigError where one cannot be read.
    """
    listed, _ = _listed_captions(path, files)
    captions: dict[Path, str | None] = {}
    for file in files:
        text, caption = file.with_suffix(".txt"), listed.get(file, "")
        if text.is_file() or text.is_symlink():
            if not _is_inside(path, text):
                raise ConfigError(f"recipe.path: {one_line(text)} is a link that leads out of the folder")
            caption = _told(text)
        captions[file] = caption.strip() or None
    return captions


def uncaptioned(path: Path) -> str:
    """How many images of a folder have no caption, and the first of them by name."""
    captions = read_captions(path, find_images(path))
    return _some([name_of(path, file) for file, caption in captions.items() if caption is None])


def _told(text: Path) -> str:
    try:
        return read_text(text)
    except ConfigError as error:
        raise ConfigError(f"recipe.path: the caption {error}") from None


def _listed_captions(path: Path, files: Sequence[Path]) -> tuple[dict[Path, str], list[str]]:
    """The captions in the folder's `metadata.jsonl`, by image; and the names in it that no image has.

    The caption is the row's `text`, or its `caption` where it has no text. Names are compared as they are,
    then with forward slashes and composed accents, since file systems decompose them.
    """
    table = path / METADATA
    if not table.is_file():
        return {}, []
    if not _is_inside(path, table):
        raise ConfigError(f"recipe.path: {one_line(table)} is a link that leads out of the folder")
    exact = {name_of(path, file): file for file in files}
    alike = {_plain_name(name): file for name, file in exact.items()}
    found, unmatched = {}, []
    for number, line in enumerate(lines_of(_told(table)), start=1):
        if not line.strip():
            continue
        name, caption = _row(f"{one_line(table)}:{number}", line)
        file = exact.get(name) or alike.get(_plain_name(name))
        if file is None:
            unmatched.append(name)
        elif caption is not None:
            found[file] = caption
    return found, unmatched


def _row(where: str, line: str) -> tuple[str, str | None]:
    try:
        row: Any = json.loads(line)
        name, caption = row["file_name"], row.get("text", row.get("caption"))
        if not isinstance(name, str) or not isinstance(caption, str | None):
            raise TypeError("file_name and text must be strings")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"recipe.path: {where} is no JSON object with file_name and text "
            f"({type(error).__name__}: {one_line(error)})"
        ) from None
    return name, caption


def _plain_name(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))


def name_of(path: Path, file: Path) -> str:
    """A file as a folder's metadata names it: relative to the folder, with forward slashes."""
    return file.relative_to(path).as_posix()
