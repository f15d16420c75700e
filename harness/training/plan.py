"""What each step of a run is made of: which rows, from which pictures, in which passes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ModelError, TrainingError
from harness.spec.expand import TrainingRun
from harness.spec.training import TRAINING_TIMESTEPS, TrainingSpec
from harness.training.batches import Batch, Noising, Source, TrainingRow
from harness.training.data import held_out, read_pictures
from harness.training.parallel import share
from harness.training.streams import Part
from harness.training.validation import validation_batches, validation_rows
from harness.training.views import Posteriors

if TYPE_CHECKING:
    from harness.models.model import Model


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The batches of one process of a run.

    A step has `rows_per_step` rows over all processes; with a prior, each row has a class picture beside it
    in the same pass, as in DreamBooth.
    """

    sources: tuple[Source, ...]
    noising: Noising
    rows_per_step: int
    own_rows: range  # this process's
    batch_size: int
    held_out: tuple[TrainingRow, ...]

    def batches(self, step: int) -> Iterator[tuple[int, Batch]]:
        """The number of the first row and the rows of each forward pass of step 1, 2, …."""
        for first in range(self.own_rows.start, self.own_rows.stop, self.batch_size):
            rows = range(first, min(first + self.batch_size, self.own_rows.stop))
            drawn = [
                row
                for source in self.sources
                for row in source.rows(step=step, rows=rows, rows_per_step=self.rows_per_step)
            ]
            yield first, self.noising.batch(drawn)

    def validation(self) -> Iterator[Batch]:
        """The held-out pictures at their fixed noise."""
        plain = replace(self.noising, noise_offset=0.0, min_snr_gamma=None)
        return validation_batches(self.held_out, plain, batch_size=self.batch_size)


def plan_steps(
    run: TrainingRun,
    model: "Model",
    *,
    pictures: Path,
    prior: Path | None,
    posteriors: Posteriors,
    rank: int,
    size: int,
) -> StepPlan:
    """Read the datasets; pictures are encoded by `posteriors`, which runs may share.

    Raises StageError, ModelError or TrainingError; see `harness.training.train`.
    """
    training, resolution = run.training, model.resolution
    rows_per_step = training.batch_size * training.gradient_accumulation
    if rows_per_step < size:
        raise TrainingError(
            f"{size} processes train {rows_per_step} rows in each step; raise training.batch_size, or lower "
            "compute.workers_per_trial"
        )
    alphas_cumprod, prediction_type = model.noise_schedule()
    if len(alphas_cumprod) != TRAINING_TIMESTEPS:
        raise ModelError(
            f"the model was trained on {len(alphas_cumprod)} timesteps; trainable are {TRAINING_TIMESTEPS}"
        )
    trained, kept = held_out(read_pictures(pictures, resolution=resolution), training.holdout)
    sources = [
        Source(
            pictures=trained,
            part=Part.PICTURES,
            prompt=training.prompt,
            training=training,
            resolution=resolution,
            caption_dropout=training.caption_dropout,
        )
    ]
    assert (prior is None) == (training.prior is None), "the class pictures go with training.prior"
    if prior is not None and training.prior is not None:
        sources.append(
            Source(
                pictures=read_pictures(prior, resolution=resolution),
                part=Part.PRIOR,
                prompt=training.prior.prompt,
                training=training,
                resolution=resolution,
                weight=training.prior.weight,
            )
        )
    _check_crop(training, sources)
    return StepPlan(
        sources=tuple(sources),
        noising=Noising(
            posteriors=posteriors,
            alphas_cumprod=alphas_cumprod,
            prediction_type=prediction_type,
            resolution=resolution,
            noise_offset=training.noise_offset,
            min_snr_gamma=training.min_snr_gamma,
        ),
        rows_per_step=rows_per_step,
        own_rows=share(rows_per_step, rank=rank, size=size),
        batch_size=training.batch_size,
        held_out=tuple(
            validation_rows(
                kept, prompt=training.prompt, resolution=resolution, timesteps=len(alphas_cumprod)
            )
        ),
    )


def _check_crop(training: TrainingSpec, sources: Iterable[Source]) -> None:
    square = all(picture.width == picture.height for source in sources for picture in source.pictures)
    if training.crop == "random" and square:
        raise TrainingError(
            "training.crop: random has no room, because all pictures are square; set training.crop: center"
        )
