"""The dataset on disk, in Hugging Face's `imagefolder` layout, and what the generating recipes share."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from harness.config.loading.image_folder import METADATA
from harness.config.schema.recipe import GeneratedRecipe
from harness.diffusion.models.model import Row, SamplerSettings

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model


SIDE_MULTIPLE = 8  # the VAE's factor


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training image and how it was made. None if it does not apply (a folder's images)."""

    image: Image.Image
    caption: str | None = None
    prompt: str | None = None
    seed: int | None = None
    guidance: float | None = None
    degradation: str | None = None
    severity: float | None = None
    original_size: tuple[int, int] | None = None  # width, height before it was resized; null: as it is
    repeats: int = 1


def write_dataset(
    samples: Iterable[Sample],
    folder: Path,
    *,
    resolution: int,
    report: Callable[[int], None],
    first: int = 0,
) -> None:
    """Write `images/000000.png …`, then `metadata.jsonl` with the sha256 of each image file's bytes.

    `first` is the number of the first image, in a part of a dataset.

    Each image's shorter side is the resolution and both sides are multiples of 8; training cuts squares.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index, sample in enumerate(samples, start=first):
        assert sample.image.mode == "RGB", sample.image.mode
        assert min(sample.image.size) == resolution, sample.image.size
        assert all(side % SIDE_MULTIPLE == 0 for side in sample.image.size), sample.image.size
        data = png_bytes(sample.image)
        name = f"images/{index:06d}.png"
        (folder / name).write_bytes(data)
        original_width, original_height = sample.original_size or sample.image.size
        row = {
            "file_name": name,
            "caption": sample.caption,
            "original_width": original_width,
            "original_height": original_height,
            "repeats": sample.repeats,
            "prompt": sample.prompt,
            "seed": sample.seed,
            "guidance": sample.guidance,
            "degradation": sample.degradation,
            "severity": sample.severity,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        lines.append(json.dumps(row) + "\n")
        report(1)
    (folder / METADATA).write_text("".join(lines), encoding="utf-8")


def join_datasets(parts: Iterable[Path], folder: Path) -> None:
    """Write the images and captions of all parts, in order, as one dataset."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for part in parts:
        for image in sorted((part / "images").iterdir()):
            shutil.copyfile(image, folder / "images" / image.name)
        lines.append((part / METADATA).read_text(encoding="utf-8"))
    (folder / METADATA).write_text("".join(lines), encoding="utf-8")


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG, without a source file's metadata (text chunks, EXIF, colour profile)."""
    pixels = Image.frombytes("RGB", image.size, image.tobytes())
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG")
    return buffer.getvalue()


def image_seed(recipe_seed: int, index: int) -> int:
    """Seed of the recipe's image number `index`: the first 32 bits of NumPy's SeedSequence([seed, index]).

    A hash, not a sum: neighbouring recipe seeds share no images, and training images do not start
    from the latents of the evaluation's small seeds.
    """
    return int(np.random.SeedSequence([recipe_seed, index]).generate_state(1)[0])


def generate_images(
    rows: Sequence[Row], recipe: GeneratedRecipe, model: "Model", *, batch_size: int
) -> Iterator["Image.Image"]:
    """The rows' images in their order, RGB, generated `batch_size` at a time."""
    settings = SamplerSettings(steps=recipe.steps, refiner_start=recipe.refiner_start)
    remaining = iter(rows)
    while batch := list(islice(remaining, batch_size)):
        for image in model.generate(batch, settings):
            yield image.image.convert("RGB")
