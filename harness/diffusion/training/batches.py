"""The rows of each training step, the noise on them, and the loss on held-out images.

The held-out loss has fixed noise and timesteps, and no crop, flip, offset, dropped caption or weighting. So
it can be compared between steps, and between runs of one dataset at any seed and settings.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from harness.config.plan.plan import TrainingRun
from harness.config.schema.training import TRAINING_TIMESTEPS, TimestepConfig, TrainingConfig
from harness.diffusion.training.data import (
    Posteriors,
    TrainingImage,
    View,
    caption_of,
    center_view,
    drawn_view,
    held_out,
    read_images,
    time_ids,
)
from harness.diffusion.training.distributed import share
from harness.diffusion.training.noise import (
    Part,
    Stream,
    add_noise,
    counter_generator,
    entry_at,
    logit_normal_timestep,
    min_snr_weight,
    training_target,
    uniform,
)
from harness.errors import ModelError, TrainingError

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """One image under one caption at one timestep."""

    image: TrainingImage
    view: View
    caption: str
    timestep: int
    weight: float
    key: tuple[int, Part, int, int]  # seed, part, step, row: what its noise is drawn from


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one forward pass, fp32 on the CPU, where their noise was drawn."""

    noisy_BChw: Tensor
    timesteps_B: Tensor
    target_BChw: Tensor
    time_ids_B6: Tensor
    weight_B: Tensor
    captions: list[str]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images that rows are drawn from, in passes that show each as often as its `repeats` say."""

    images: Sequence[TrainingImage]
    part: Part
    prompt: str
    training: TrainingConfig
    resolution: int
    caption_dropout: float = 0.0
    weight: float = 1.0

    @cached_property
    def entries(self) -> list[TrainingImage]:
        """One pass, before it is put into an order of its own."""
        return [image for image in self.images for _ in range(image.repeats)]

    def rows(self, *, step: int, rows: range, rows_per_step: int) -> list[TrainingRow]:
        """These rows of step 1, 2, …."""
        entries, seed, first = self.entries, self.training.seed, (step - 1) * rows_per_step
        return [
            self._row(
                entries[entry_at(first + row, seed=seed, part=self.part, entries=len(entries))],
                key=(seed, self.part, step, row),
            )
            for row in rows
        ]

    def _row(self, image: TrainingImage, *, key: tuple[int, Part, int, int]) -> TrainingRow:
        training, (seed, part, step, row) = self.training, key
        dropped = uniform(seed, part, Stream.CAPTION, step, row) < self.caption_dropout
        return TrainingRow(
            image=image,
            view=drawn_view(
                image, resolution=self.resolution, crop=training.crop, flip=training.flip, key=key
            ),
            caption="" if dropped else caption_of(image, self.prompt),
            timestep=drawn_timestep(training.timesteps, key=key),
            weight=self.weight,
            key=key,
        )


def drawn_timestep(config: TimestepConfig, *, key: tuple[int, Part, int, int]) -> int:
    """The timestep of one row."""
    seed, part, step, row = key
    generator = counter_generator(seed, part, Stream.TIMESTEP, step, row)
    if config.distribution == "uniform":
        return int(torch.randint(config.lowest, config.highest + 1, (), generator=generator))
    return logit_normal_timestep(
        float(torch.randn((), generator=generator, dtype=torch.float64)),
        mean=0.0 if config.mean is None else config.mean,
        deviation=1.0 if config.deviation is None else config.deviation,
        lowest=config.lowest,
        highest=config.highest,
    )


@dataclass(frozen=True, kw_only=True)
class Noising:
    """Turns rows into a batch. A row's numbers do not depend on the other rows."""

    posteriors: Posteriors
    alphas_cumprod: Tensor
    prediction_type: str
    resolution: int
    noise_offset: float = 0.0
    min_snr_gamma: float | None = None
    min_snr_v: Literal["kohya", "diffusers"] = "kohya"

    def batch(self, rows: Sequence[TrainingRow]) -> Batch:
        """The forward process at each row's timestep, its target and weight."""
        mean_BChw, std_BChw = (
            torch.stack(tensors)
            for tensors in zip(*(self.posteriors.of(row.image, row.view) for row in rows), strict=True)
        )
        x0_BChw = mean_BChw + std_BChw * _normal(rows, Stream.POSTERIOR, mean_BChw.shape[1:])
        noise_BChw = _normal(rows, Stream.NOISE, mean_BChw.shape[1:])
        if self.noise_offset:  # N. Guttenberg, "Diffusion with offset noise" (2023)
            noise_BChw += self.noise_offset * _normal(rows, Stream.OFFSET, (mean_BChw.shape[1], 1, 1))
        timesteps_B = torch.tensor([row.timestep for row in rows])
        alpha_bar_B = self.alphas_cumprod[timesteps_B]
        weight_B = torch.tensor([row.weight for row in rows])
        if self.min_snr_gamma is not None:
            weight_B = weight_B * min_snr_weight(
                self.prediction_type, alpha_bar_B=alpha_bar_B, gamma=self.min_snr_gamma, of_v=self.min_snr_v
            )
        return Batch(
            noisy_BChw=add_noise(x0_BChw, noise_BChw, alpha_bar_B),
            timesteps_B=timesteps_B,
            target_BChw=training_target(
                self.prediction_type, x0_BChw=x0_BChw, noise_BChw=noise_BChw, alpha_bar_B=alpha_bar_B
            ),
            time_ids_B6=torch.tensor(
                [time_ids(row.image, row.view, resolution=self.resolution) for row in rows]
            ),
            weight_B=weight_B,
            captions=[row.caption for row in rows],
        )


def _normal(rows: Iterable[TrainingRow], stream: Stream, shape: Sequence[int]) -> Tensor:
    drawn = []
    for row in rows:
        seed, part, step, number = row.key
        drawn.append(torch.randn(shape, generator=counter_generator(seed, part, stream, step, number)))
    return torch.stack(drawn)


LEVELS = 4  # noise levels at which each image is seen, spread evenly


def validation_rows(
    images: Sequence[TrainingImage], *, prompt: str, resolution: int, timesteps: int
) -> list[TrainingRow]:
    """Each image at the middle of each of LEVELS equal parts of the timesteps."""
    return [
        TrainingRow(
            image=image,
            view=center_view(image, resolution=resolution),
            caption=caption_of(image, prompt),
            timestep=timesteps * (2 * level + 1) // (2 * LEVELS),
            weight=1.0,
            key=(0, Part.HOLDOUT, level, place),
        )
        for place, image in enumerate(images)
        for level in range(LEVELS)
    ]


def validation_batches(rows: Sequence[TrainingRow], noising: Noising, *, batch_size: int) -> Iterator[Batch]:
    """The rows in passes of `batch_size`."""
    for first in range(0, len(rows), batch_size):
        yield noising.batch(rows[first : first + batch_size])


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The batches of one process of a run.

    A step has `rows_per_step` rows over all processes; with a prior, each row has a class image beside it
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
        """The held-out images at their fixed noise."""
        plain = replace(self.noising, noise_offset=0.0, min_snr_gamma=None)
        return validation_batches(self.held_out, plain, batch_size=self.batch_size)


def plan_steps(
    run: TrainingRun,
    model: "Model",
    *,
    images: Path,
    prior: Path | None,
    posteriors: Posteriors,
    rank: int,
    size: int,
) -> StepPlan:
    """Read the datasets; images are encoded by `posteriors`, which runs may share.

    Raises ArtifactError, ModelError or TrainingError; see `harness.training.train`.
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
    trained, kept = held_out(read_images(images, resolution=resolution), training.holdout)
    sources = [
        Source(
            images=trained,
            part=Part.PICTURES,
            prompt=training.prompt,
            training=training,
            resolution=resolution,
            caption_dropout=training.caption_dropout,
        )
    ]
    assert (prior is None) == (training.prior is None), "the class images go with training.prior"
    if prior is not None and training.prior is not None:
        sources.append(
            Source(
                images=read_images(prior, resolution=resolution),
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
            min_snr_v=training.min_snr_v,
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


def _check_crop(training: TrainingConfig, sources: Iterable[Source]) -> None:
    square = all(image.width == image.height for source in sources for image in source.images)
    if training.crop == "random" and square:
        raise TrainingError(
            "training.crop: random has no room, because all images are square; set training.crop: center"
        )
