"""The dataset on disk: pictures and captions in Hugging Face's `imagefolder` layout."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training picture and how it came to be. Null where it does not apply (a folder's pictures)."""

    image: Image.Image
    prompt: str | None = None
    seed: int | None = None
    guidance: float | None = None
    degradation: str | None = None
    severity: float | None = None


def write_dataset(
    samples: Iterable[Sample], folder: Path, *, resolution: int, report: Callable[[int], None]
) -> None:
    """Write `images/000000.png …`, then `metadata.jsonl` with the sha256 of each picture file's bytes."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index, sample in enumerate(samples):
        assert sample.image.mode == "RGB", sample.image.mode
        assert sample.image.size == (resolution, resolution), sample.image.size
        data = png_bytes(sample.image)
        name = f"images/{index:06d}.png"
        (folder / name).write_bytes(data)
        row = {
            "file_name": name,
            "prompt": sample.prompt,
            "seed": sample.seed,
            "guidance": sample.guidance,
            "degradation": sample.degradation,
            "severity": sample.severity,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        report(1)
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def png_bytes(image: Image.Image) -> bytes:
    """The picture as PNG, without a source file's metadata (text chunks, EXIF, colour profile)."""
    pixels = Image.frombytes("RGB", image.size, image.tobytes())
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG")
    return buffer.getvalue()
