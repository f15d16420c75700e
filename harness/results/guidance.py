"""Effects in units of guidance, and the guidance at which a control matches an arm. Pure functions.

A scorer that likes contrast rewards any method that raises guidance, so a gain is compared with what guidance
alone would give (Guidance Matters, ICLR 2026, arXiv 2602.22570).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from harness.config.schema.evaluation import EFFECTIVE_GUIDANCE
from harness.results.contrast import number
from harness.results.summary import mean_difference

if TYPE_CHECKING:
    from harness.results.sweep_results import Results


def guidance_of(arm: Mapping[str, Any], sampler: Mapping[str, Any]) -> float:
    """The guidance scale of an arm, as the sweep's table describes arm and sampler."""
    return float(sampler["guidance"] if arm["guidance"] is None else arm["guidance"])


def guidance_text(arm: Mapping[str, Any], sampler: Mapping[str, Any]) -> str:
    """An arm's guidance for people, as `5 by apg, from 20 % to 80 % of the steps`."""
    text = f"{guidance_of(arm, sampler):g}"
    if (guider := (arm["guider"] or sampler["guider"])["kind"]) != "cfg":
        text += f" by {guider}"
    if (interval := arm["guidance_interval"] or sampler["guidance_interval"]) is not None:
        text += ", from {:.0%} to {:.0%} of the steps".format(*interval).replace("%", " %")
    return text


def match_text(arm: Mapping[str, Any]) -> str:
    """What a control with a `match` is, and what came of it, as `saturation as of wrong_lora: guidance 3`."""
    match, found = arm["match"], "searched for"
    if match["missing"] is not None:
        found = f"not reachable ({match['missing']})"
    elif arm["guidance"] is not None:
        found = f"{arm['guidance']:g}"
    return f"guidance by {match['by']} as of {match['arm']}: {found}"


def damage_text(arm: Mapping[str, Any]) -> str:
    """What a damaged control is, as `known damage, blur 0.2`."""
    return "known damage, {degrade} {severity:g}".format(**arm["post"])


@dataclass(frozen=True, kw_only=True)
class Effective:
    """Effective guidance ω_e of an arm, and the share of it that is orthogonal: means over `images`.

    Plain guidance ω has ω_e = ω and share 0 (`harness.diffusion.models.guidance.step_guidance`).
    """

    guidance: float
    orthogonal: float
    images: int


def effective_guidance(images: pd.DataFrame, arm_id: str | None) -> Effective | None:
    """Of the images of one arm that were measured; None where none was."""
    rows = images[(images["arm_id"] == arm_id) & images["effective_guidance"].notna()]
    if rows.empty:
        return None
    guidance, orthogonal = rows[["effective_guidance", "orthogonal_share"]].astype(float).mean()
    return Effective(guidance=float(guidance), orthogonal=float(orthogonal), images=len(rows))


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
            return Match(draw_next=_readable(left + share * (right - left)))
    return Match(
        not_reachable=f"between guidance {between[0]:g} and {between[1]:g} the statistic goes from "
        f"{min(value):.4g} to {max(value):.4g}, and the arm has {target:.4g}"
    )


def guidances_around(own: float) -> tuple[float, float]:
    """Half and twice the distance from 1, where there is no guidance: where a match is looked for."""
    return _readable(1 + (own - 1) / 2), _readable(1 + (own - 1) * 2)


def _readable(guidance: float) -> float:
    return float(f"{guidance:.4g}")


def matched_statistics(
    results: "Results", *, own: str, controls: Mapping[float, str], by: str
) -> tuple[float | None, dict[float, float]]:
    """The mean of a statistic on dev of the arm `own`, and of controls by their guidance.

    `by`: a metric, compared in pairs and by the mean over prompts as in the summary, or the effective
    guidance, which one in eight dev images has measured. None, and no entry, where there is no value.
    """
    images = results.images[results.images["split"] == "dev"]
    if by == EFFECTIVE_GUIDANCE:
        measured = {arm_id: effective_guidance(images, arm_id) for arm_id in (own, *controls.values())}
        target = measured[own]
        return None if target is None else target.guidance, {
            at: found.guidance for at, arm_id in controls.items() if (found := measured[arm_id]) is not None
        }
    scores = results.scores[results.scores["metric"] == by].merge(images, on="image_id")
    of_prompts = scores[scores["arm_id"] == own].groupby("prompt_id")["value"].mean()
    mean = number(of_prompts.mean())
    if mean is None:
        return None, {}
    differences = {
        at: mean_difference(
            images[images["arm_id"].isin([own, arm_id])], results.scores, own=own, control=arm_id, metric=by
        )
        for at, arm_id in controls.items()
    }
    return mean, {at: mean - found for at, found in differences.items() if found is not None}


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
