"""The loss on pictures that are not trained on, always at the same noise and timesteps.

A training loss is mostly its timesteps' noise. This one can be compared between steps and between runs of
one dataset, whatever their seed and settings: no crop, flip, offset, dropped caption or weighting enters.
"""

from collections.abc import Iterator, Sequence

from harness.training.batches import Batch, Noising, TrainingRow
from harness.training.data import TrainingPicture, caption_of
from harness.training.streams import Part
from harness.training.views import center_view

LEVELS = 4  # noise levels at which each picture is seen, spread evenly


def validation_rows(
    pictures: Sequence[TrainingPicture], *, prompt: str, resolution: int, timesteps: int
) -> list[TrainingRow]:
    """Each picture at the middle of each of LEVELS equal parts of the timesteps."""
    return [
        TrainingRow(
            picture=picture,
            view=center_view(picture, resolution=resolution),
            caption=caption_of(picture, prompt),
            timestep=timesteps * (2 * level + 1) // (2 * LEVELS),
            weight=1.0,
            key=(0, Part.HOLDOUT, level, place),
        )
        for place, picture in enumerate(pictures)
        for level in range(LEVELS)
    ]


def validation_batches(rows: Sequence[TrainingRow], noising: Noising, *, batch_size: int) -> Iterator[Batch]:
    """The rows in passes of `batch_size`."""
    for first in range(0, len(rows), batch_size):
        yield noising.batch(rows[first : first + batch_size])
