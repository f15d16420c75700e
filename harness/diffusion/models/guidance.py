"""Guidance of a batch: diffusers' guiders on the two rows of each image, and how strong the result is.

The pipelines know classifier-free guidance alone, so the UNet's output is replaced: both rows of an image
become the guided prediction, which any scale leaves as it is. The arithmetic is that of diffusers' own guider
classes (experimental in 0.42), each image by itself.

Shape legend: N images, M rows of the base without adapters, B rows of the batch: N negative ones, N positive
ones, then the M.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
)
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

from harness.config.schema.evaluation import ApgGuider, CfgZeroStarGuider
from harness.diffusion.models.model import Row, SamplerSettings
from harness.diffusion.models.text_encoding import Encoded

logging.getLogger("diffusers.guiders.guider_utils").setLevel(logging.ERROR)  # "experimental", for each one


def step_guidance(
    guided: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Effective guidance ω_e of one sampling step, and its orthogonal share. Predictions [..., D] → [...].

    `guided` is what the sampler used, `positive` and `negative` the predictions of the base without adapters
    for prompt and negative prompt at the same latents. ω_e is the length of guided − negative along positive
    − negative, in lengths of that: plain guidance ω has ω_e = ω and share 0. The share is the length of what
    is orthogonal to it over the whole length, 0 to 1: it tells a change of direction from a change of
    guidance. NaN where the two predictions of the base are equal, and the share is NaN where guided −
    negative is 0. Guidance Matters (ICLR 2026, arXiv 2602.22570).
    """
    direction, moved = positive - negative, guided - negative
    along = (moved * direction).sum(-1) / (direction * direction).sum(-1)
    rest = moved - along[..., None] * direction
    share = ((rest * rest).sum(-1) / (moved * moved).sum(-1)) ** 0.5
    return along, share


def make_guider(row: Row, rescale: float) -> Any:
    """The guider of a row, diffusers' own class. `rescale` is φ of Lin et al. 2023."""
    start, stop = row.guidance_interval or (0.0, 1.0)
    shared = {
        "guidance_scale": row.guidance,
        "guidance_rescale": rescale,
        "start": start,
        "stop": stop,
    }
    match row.guider:
        case CfgZeroStarGuider(zero_init_steps=steps):
            return ClassifierFreeZeroStarGuidance(zero_init_steps=steps, **shared)
        case ApgGuider(momentum=momentum, norm=norm, eta=eta):
            guider = AdaptiveProjectedGuidance(
                adaptive_projected_guidance_momentum=momentum,
                adaptive_projected_guidance_rescale=norm,
                eta=eta,
                **shared,
            )
            if momentum is not None:
                guider.momentum_buffer = MomentumBuffer(momentum)
            return guider
        case _:
            return ClassifierFreeGuidance(**shared)


@dataclass(frozen=True, kw_only=True)
class BaseRow:
    """A row of an image's base without adapters, which measuring needs where the batch has none."""

    image: int
    positive: bool
    encoded: Encoded


@dataclass(kw_only=True)
class Guidance:
    """Guidance of one batch, whose rows are alike in it, from the base's first step to the refiner's last.

    `calls` is how often the UNets are called in all. `base_rows` are those that the batch is given besides.
    """

    rows: Sequence[Row]
    settings: SamplerSettings
    calls: int
    base_rows: Sequence[BaseRow] = ()
    _step: int = 0
    _found: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # [images measured] a step

    def __post_init__(self) -> None:
        self._guider = make_guider(self.rows[0], self.settings.guidance_rescale)
        self._measured = [place for place, row in enumerate(self.rows) if row.measured]

    @contextmanager
    def acts_on_base(self, unet: torch.nn.Module) -> Iterator[None]:
        """While the block runs, the base's UNet gives guided predictions, and their strength is measured."""
        before = unet.register_forward_pre_hook(self._with_base_rows, with_kwargs=True)
        with before, unet.register_forward_hook(self._guided_and_measured):
            yield

    @contextmanager
    def acts_on_refiner(self, unet: torch.nn.Module) -> Iterator[None]:
        """While the block runs, the refiner's UNet gives guided predictions."""
        with unet.register_forward_hook(self._guided):
            yield

    def measured(self) -> dict[int, tuple[float, float]]:
        """Place of each measured image → means of ω_e and of the orthogonal share over the base's steps.

        Steps in which the base sees no difference between the two prompts are left out; NaN where all are.
        """
        if not self._found:
            return {}
        means = [torch.stack(steps).nanmean(dim=0).tolist() for steps in zip(*self._found, strict=True)]
        return dict(zip(self._measured, zip(*means, strict=True), strict=True))

    def _with_base_rows(
        self, unet: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.base_rows:
            return None
        sample_BChw, *others = args

        def again(tensor_B: torch.Tensor) -> torch.Tensor:
            # Not by a list of indices: on a GPU each of them would be waited for.
            return torch.cat([tensor_B, *(tensor_B[row.image : row.image + 1] for row in self.base_rows)])

        conditions = kwargs["added_cond_kwargs"]
        embeds = [row.encoded.embeds_1TD for row in self.base_rows]
        pooled = [row.encoded.pooled_1P for row in self.base_rows]
        more = {
            "encoder_hidden_states": torch.cat([kwargs["encoder_hidden_states"], *embeds]),
            "added_cond_kwargs": {
                "text_embeds": torch.cat([conditions["text_embeds"], *pooled]),
                "time_ids": again(conditions["time_ids"]),
            },
        }
        return (again(sample_BChw), *others), {**kwargs, **more}

    def _guided_and_measured(
        self, unet: torch.nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        predicted_BChw = output[0]
        count = len(self.rows)
        (guided_BChw,) = self._guided(unet, args, (predicted_BChw[: 2 * count],))
        if self._measured:
            negative, positive = list(predicted_BChw[:count]), list(predicted_BChw[count : 2 * count])
            for row, prediction in zip(self.base_rows, predicted_BChw[2 * count :], strict=True):
                (positive if row.positive else negative)[row.image] = prediction
            sides = (guided_BChw, positive, negative)
            flat = [torch.stack([side[place] for place in self._measured]) for side in sides]
            guided, right, left = (side.flatten(1).double() for side in flat)
            self._found.append(step_guidance(guided, right, left))
        return (guided_BChw,)

    def _guided(
        self, _unet: torch.nn.Module, _args: tuple[Any, ...], output: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        negative_NChw, positive_NChw = output[0].chunk(2)
        self._guider.set_state(self._step, self.calls, None)
        self._step += 1
        guided_NChw = self._guider.forward(positive_NChw, negative_NChw).pred
        return (torch.cat([guided_NChw, guided_NChw]),)
