"""The rows of each step, and the noise on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from harness.spec.training import TimestepSpec, TrainingSpec
from harness.training.data import TrainingPicture, caption_of
from harness.training.loss import add_noise, logit_normal_timestep, min_snr_weight, training_target
from harness.training.streams import Part, Stream, counter_generator, entry_at, uniform
from harness.training.views import Posteriors, View, drawn_view, time_ids


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """One picture under one caption at one timestep."""

    picture: TrainingPicture
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
    """Pictures that rows are drawn from, in passes that show each as often as its `repeats` say."""

    pictures: Sequence[TrainingPicture]
    part: Part
    prompt: str
    training: TrainingSpec
    resolution: int
    caption_dropout: float = 0.0
    weight: float = 1.0

    @cached_property
    def entries(self) -> list[TrainingPicture]:
        """One pass, before it is put into an order of its own."""
        return [picture for picture in self.pictures for _ in range(picture.repeats)]

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

    def _row(self, picture: TrainingPicture, *, key: tuple[int, Part, int, int]) -> TrainingRow:
        training, (seed, part, step, row) = self.training, key
        dropped = uniform(seed, part, Stream.CAPTION, step, row) < self.caption_dropout
        return TrainingRow(
            picture=picture,
            view=drawn_view(
                picture, resolution=self.resolution, crop=training.crop, flip=training.flip, key=key
            ),
            caption="" if dropped else caption_of(picture, self.prompt),
            timestep=drawn_timestep(training.timesteps, key=key),
            weight=self.weight,
            key=key,
        )


def drawn_timestep(spec: TimestepSpec, *, key: tuple[int, Part, int, int]) -> int:
    """The timestep of one row."""
    seed, part, step, row = key
    generator = counter_generator(seed, part, Stream.TIMESTEP, step, row)
    if spec.distribution == "uniform":
        return int(torch.randint(spec.lowest, spec.highest + 1, (), generator=generator))
    return logit_normal_timestep(
        float(torch.randn((), generator=generator, dtype=torch.float64)),
        mean=0.0 if spec.mean is None else spec.mean,
        deviation=1.0 if spec.deviation is None else spec.deviation,
        lowest=spec.lowest,
        highest=spec.highest,
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

    def batch(self, rows: Sequence[TrainingRow]) -> Batch:
        """The forward process at each row's timestep, its target and weight."""
        mean_BChw, std_BChw = (
            torch.stack(tensors)
            for tensors in zip(*(self.posteriors.of(row.picture, row.view) for row in rows), strict=True)
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
                self.prediction_type, alpha_bar_B=alpha_bar_B, gamma=self.min_snr_gamma
            )
        return Batch(
            noisy_BChw=add_noise(x0_BChw, noise_BChw, alpha_bar_B),
            timesteps_B=timesteps_B,
            target_BChw=training_target(
                self.prediction_type, x0_BChw=x0_BChw, noise_BChw=noise_BChw, alpha_bar_B=alpha_bar_B
            ),
            time_ids_B6=torch.tensor(
                [time_ids(row.picture, row.view, resolution=self.resolution) for row in rows]
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
