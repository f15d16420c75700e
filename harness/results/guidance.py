"""Effects in units of guidance, and the guidance at which a control matches an arm. Pure functions.

A scorer that likes contrast rewards any method that raises guidance, so a gain is compared with what guidance
alone would give (Guidance Matters, ICLR 2026, arXiv 2602.22570).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from scipy.interpolate import PchipInterpolator

Tensor = TypeVar("Tensor")  # numpy or torch


def step_guidance(guided: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Effective guidance ω_e of one sampling step, and its orthogonal share. Predictions [..., D] → [...].

    `guided` is what the sampler used, `positive` and `negative` the predictions of the base without adapters
    for prompt and negative prompt at the same latents. ω_e is the length of guided − negative along positive
    − negative, in lengths of that: plain guidance ω has ω_e = ω and share 0. The share is the length of what
    is orthogonal to it over the whole length, 0 to 1: it tells a change of direction from a change of
    guidance. The ω_e of an image is the mean over its steps. NaN where the two predictions of the base are
    equal, and the share is NaN where guided − negative is 0. Works on torch tensors as on arrays.
    """
    direction, moved = positive - negative, guided - negative  # type: ignore[operator]
    along = (moved * direction).sum(-1) / (direction * direction).sum(-1)
    rest = moved - along[..., None] * direction
    share = ((rest * rest).sum(-1) / (moved * moved).sum(-1)) ** 0.5
    return along, share


def in_guidance_units(effect: float, effect_at: Mapping[float, float], *, own: float) -> float | None:
    """The guidance at which the control alone would have this effect; None where no rung reaches it.

    `effect_at` maps the guidances of a ladder of controls to their mean differences from the control at
    guidance `own`, whose difference is 0. Straight lines between rungs; of several crossings the one nearest
    to `own`. So +0.20 on a ladder with +0.31 at 2.25, from 2, is guidance 2.16.
    """
    guidance, value = _rungs({**effect_at, own: 0.0})
    found = [
        left + (right - left) * ((effect - low) / (high - low) if high != low else 0.0)
        for (left, low), (right, high) in pairwise(zip(guidance, value, strict=True))
        if min(low, high) <= effect <= max(low, high)
    ]
    return min(found, key=lambda at: abs(at - own)) if found else None


def effect_of_guidance(change: float, effect_at: Mapping[float, float], *, own: float) -> float | None:
    """What a change of guidance from `own` does, by straight lines between rungs; None beyond the ladder.

    `effect_of_guidance(0.1, …)` in size is a margin to propose: less than what a turn of that knob gives.
    """
    guidance, value = _rungs({**effect_at, own: 0.0})
    if not guidance[0] <= own + change <= guidance[-1]:
        return None
    return float(np.interp(own + change, guidance, value))


@dataclass(frozen=True, kw_only=True)
class Match:
    """Where the search for a matched guidance stands. One of the three."""

    found: float | None = None  # a guidance at which the statistic matches
    draw_next: float | None = None  # measure the statistic at this guidance, and ask again
    not_reachable: str | None = None  # why there is none


def match_guidance(
    statistic_at: Mapping[float, float],
    target: float,
    *,
    between: tuple[float, float],
    tolerance: float = 0.02,
    draws: int = 5,
) -> Match:
    """The guidance at which a control's statistic equals the arm's, on dev prompts: what to do next.

    `statistic_at` maps each guidance that is known so far to the statistic there: the controls that the sweep
    has anyway, and what the search has added, of which `draws` are left. Equal means within `tolerance` of
    the range of the statistic between the two ends. The next guidance is where a curve through what is known
    meets the target, kept away from its neighbours, so that the bracket shrinks.
    """
    for end in between:
        if end not in statistic_at:
            return Match(draw_next=end) if draws > 0 else Match(not_reachable="no draws are left")
    guidance, value = _rungs(
        {at: found for at, found in statistic_at.items() if between[0] <= at <= between[1]}
    )
    span = max(value) - min(value)
    nearest = min(range(len(value)), key=lambda index: abs(value[index] - target))
    if abs(value[nearest] - target) <= tolerance * span:
        return Match(found=guidance[nearest])
    for (left, low), (right, high) in pairwise(zip(guidance, value, strict=True)):
        if min(low, high) <= target <= max(low, high):
            if draws == 0:
                return Match(not_reachable="the statistic still differs after the last draw")
            share = float(np.clip((_meets(guidance, value, target) - left) / (right - left), 0.05, 0.95))
            return Match(draw_next=left + share * (right - left))
    return Match(
        not_reachable=f"between guidance {between[0]:g} and {between[1]:g} the statistic goes from "
        f"{min(value):.4g} to {max(value):.4g}, and the arm has {target:.4g}"
    )


def _meets(guidance: list[float], value: list[float], target: float) -> float:
    """Where a monotone cubic through all rungs meets the target; straight lines where none goes through."""
    rising = value[-1] > value[0]
    values, guidances = (value, guidance) if rising else (value[::-1], guidance[::-1])
    if all(low < high for low, high in pairwise(values)):
        return float(PchipInterpolator(values, guidances)(target))
    for (left, low), (right, high) in pairwise(zip(guidance, value, strict=True)):
        if min(low, high) <= target <= max(low, high):
            return left + (right - left) * (target - low) / (high - low)
    raise AssertionError("a target between two rungs")


def _rungs(value_at: Mapping[float, float]) -> tuple[list[float], list[float]]:
    guidance = sorted(value_at)
    return guidance, [value_at[at] for at in guidance]
