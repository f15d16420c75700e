"""Thumbnails: each image of the page once, within the bytes that the page may take."""

import base64
import io
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from harness.store.workspace import Workspace

LARGE = 256  # pixels of the longer side, in rows of pairs
CRISP = 96  # pixels; smaller images are kept as they are, and shown enlarged, pixel by pixel
BYTES = 12_500_000  # of all thumbnails, as base64; with its text and figures the page stays below 15 MB
ROWS = 5_000_000  # of those, for rows of pairs
READERS = 4  # threads; decoding leaves Python's lock
SMALL = ((1_000, 160, 72), (4_000, 128, 68), (None, 96, 60))  # up to so many images: pixels, WebP's quality
LOSSLESS_UP_TO = 1_000  # images


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """An embedded image. `uri` is empty where the page has it already, further up."""

    image: int  # row of the images table
    uri: str
    width: int
    height: int

    @property
    def crisp(self) -> bool:
        """True for images so small that they are shown enlarged."""
        return max(self.width, self.height) <= CRISP


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One thumbnail's bytes, and the text that its file has for other tools."""

    uri: str
    width: int
    height: int
    parameters: str


Cache = dict[tuple[str, int], Encoded | None]  # by path and size


@dataclass
class Thumbnails:
    """Encodes images of a workspace and counts the bytes they take on the page.

    `paths` are those of the images table. A `cache` that is given again spares a page that grows the work.
    """

    workspace: Workspace
    paths: list[str]
    cache: Cache = field(default_factory=dict)
    spent: int = 0

    def __post_init__(self) -> None:
        self._image = {path: place for place, path in enumerate(self.paths)}
        self._shown: dict[str, Encoded] = {}
        self._size, self._quality = next(
            (size, quality) for most, size, quality in SMALL if most is None or len(self.paths) <= most
        )

    def __call__(self, path: str) -> Thumbnail | None:
        """The image for a row of pairs; None where the file is gone or unreadable."""
        again = path in self._shown
        if not again:
            found = self._encoded(path, LARGE)
            if found is None:
                return None
            self._shown[path] = found
            self.spent += len(found.uri)
        found = self._shown[path]
        uri = "" if again else found.uri
        return Thumbnail(image=self._image[path], uri=uri, width=found.width, height=found.height)

    def rest(self, order: Iterable[int]) -> dict[int, Encoded]:
        """Small thumbnails by row of the images table, in this order, until the bytes are spent.

        Those of rows of pairs have no `uri`: the page has them. Unreadable ones are left out.
        """
        found = {
            self._image[path]: Encoded(uri="", width=e.width, height=e.height, parameters=e.parameters)
            for path, e in self._shown.items()
        }
        wanted = [row for row in order if row not in found]
        with ThreadPoolExecutor(READERS) as readers:
            for first in range(0, len(wanted), 256):  # not all at once: the bytes may be spent before
                if self.spent > BYTES:
                    break
                rows = wanted[first : first + 256]
                encoded = readers.map(lambda row: self._encoded(self.paths[row], self._size), rows)
                for row, one in zip(rows, encoded, strict=True):
                    if one is not None and self.spent <= BYTES:
                        self.spent += len(one.uri)
                        found[row] = one
        return found

    @property
    def rows_are_full(self) -> bool:
        """True where rows of pairs have taken their bytes."""
        return self.spent > ROWS

    def _encoded(self, path: str, size: int) -> Encoded | None:
        if (path, size) not in self.cache:
            quality = 82 if size == LARGE else self._quality
            lossless = size == LARGE or len(self.paths) <= LOSSLESS_UP_TO
            self.cache[path, size] = _encode(self.workspace.file(path), size, quality, lossless=lossless)
        return self.cache[path, size]


def _encode(path: Path, size: int, quality: int, *, lossless: bool) -> Encoded | None:
    """`lossless`: of images that are no larger than `CRISP`."""
    try:
        with Image.open(path) as opened:
            parameters = str(opened.info.get("parameters", ""))
            image = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    small = max(image.size) <= CRISP
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=small and lossless, quality=80 if small else quality, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Encoded(uri=uri, width=image.width, height=image.height, parameters=parameters)


@dataclass
class Parameters:
    """The `parameters` of image files as a few templates: in an arm they differ by prompt and seed alone."""

    _number: dict[str, int] = field(default_factory=dict)

    @property
    def templates(self) -> list[str]:
        """By number."""
        return list(self._number)

    def add(self, text: str, prompt: str) -> tuple[int, str]:
        """Number of the template, −1 for no text, and the seed that `{seed}` stands for in it."""
        if not text:
            return -1, ""
        head, tail = ("{prompt}", text[len(prompt) :]) if text.startswith(prompt) else ("", text)
        seed = re.search(r"(?<=\bSeed: )\d+", tail)
        if seed:
            tail = tail[: seed.start()] + "{seed}" + tail[seed.end() :]
        number = self._number.setdefault(head + tail, len(self._number))
        return number, seed[0] if seed else ""
