"""The pictures of a dataset folder, and which of them are kept from training."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from harness.errors import StageError, TrainingError
from harness.spec.training import CAPTION

VAE_FACTOR = 8


@dataclass(frozen=True, kw_only=True)
class TrainingPicture:
    """A picture whose shorter side is the model's resolution, and the size it had before it was resized."""

    file: Path
    sha256: str
    width: int
    height: int
    original_width: int
    original_height: int
    caption: str | None
    repeats: int

    def pixels(self) -> Image.Image:
        """Read the file, RGB. Raises StageError where it is no longer what it was."""
        return _decode(self.file, self.sha256)


def read_pictures(dataset: Path, *, resolution: int) -> list[TrainingPicture]:
    """The dataset's pictures in order. Raises StageError where one does not match `metadata.jsonl`."""
    try:
        lines = (dataset / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        if not rows:
            raise ValueError("metadata.jsonl is empty")
        return [_picture(dataset, row, resolution) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"dataset {dataset} is damaged ({type(error).__name__}: {error}); delete it to have it made again"
        ) from error


def _picture(dataset: Path, row: Mapping[str, Any], resolution: int) -> TrainingPicture:
    file = dataset / row["file_name"]
    width, height = _decode(file, row["sha256"]).size
    if min(width, height) != resolution or width % VAE_FACTOR or height % VAE_FACTOR:
        raise ValueError(f"{row['file_name']} is {width} × {height} px; the model needs {resolution}")
    return TrainingPicture(
        file=file,
        sha256=row["sha256"],
        width=width,
        height=height,
        original_width=row["original_width"],
        original_height=row["original_height"],
        caption=row["caption"],
        repeats=row["repeats"],
    )


def _decode(file: Path, sha256: str) -> Image.Image:
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StageError(
            f"{file} is not the picture that was written; delete its dataset to have it made again"
        )
    return Image.open(io.BytesIO(data)).convert("RGB")


def held_out(
    pictures: Sequence[TrainingPicture], count: int
) -> tuple[list[TrainingPicture], list[TrainingPicture]]:
    """The pictures to train on, and `count` that are kept from it.

    The same ones in every run of a dataset, whatever its seed, so that their losses can be compared; in no
    order that a recipe could have. Raises TrainingError where none would be left to train on.
    """
    if count >= len(pictures):
        raise TrainingError(
            f"training.holdout: {count} leaves nothing of {len(pictures)} pictures to train on; "
            f"at most {len(pictures) - 1}"
        )
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()
    kept = set(order[:count])
    return (
        [picture for place, picture in enumerate(pictures) if place not in kept],
        [pictures[place] for place in sorted(kept)],
    )


def caption_of(picture: TrainingPicture, prompt: str) -> str:
    """The prompt, with the picture's own caption where it says `{caption}`."""
    if CAPTION not in prompt:
        return prompt
    if picture.caption is None:
        raise TrainingError(
            f"training.prompt {prompt!r} needs a caption for {picture.file.name}, which has none"
        )
    return prompt.replace(CAPTION, picture.caption)
