"""The rule that turns an estimate into better, worse, equivalent or undecided. Pure functions on arrays.

"No difference" and "no data" look the same, so a verdict comes with what its design could have found
(`detectable`) and with the number of prompts that would decide it (`prompts_to_decide`).

Shape legend: K contrasts. Arrays of scores may have any shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.results.inference import Bools, Estimates, Floats, Texts, too_few
from harness.results.power import MOST_PROMPTS, detectable_in_errors, equivalence_in_errors, fewest

FEWEST_NOISES = 8  # where all prompts share them, before a verdict may rest on them
MOST_LOST = 0.1  # share of pairs
EXACT_PROMPTS = np.arange(2, 512)  # up to which t is exact; beyond, the normal distribution

Words = NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What counts as decided. `margin`, in units of the metric, is needed for "equivalent" alone."""

    confidence: float = 0.95
    margin: float | None = None  # the smallest difference worth having
    power: float = 0.8  # of what a design is said to find


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The same contrasts with their lost pairs filled in (`fill_lost`), and how many those are."""

    lowest: Estimates  # of the lowest differences that the lost pairs could have had
    highest: Estimates
    share_K: Floats  # lost pairs of those that the design owes


def decide(
    estimates: Estimates, rule: Rule, *, higher_is_better: bool | None, losses: Losses | None = None
) -> tuple[Words, Texts]:
    """The verdict on each contrast [K], and why it is undecided where its numbers are not the cause.

    - equivalent: the interval at 1 − 2α lies within ±margin (two one-sided tests, Schuirmann 1987). It goes
      before the others: a difference shown to be smaller than what is worth having is no gain.
    - better or worse: the interval excludes 0, and p ≤ α. For a metric without a better direction
      (`higher_is_better` None): higher or lower.
    - undecided: all else, and whatever lacks an interval, has too few prompts for p to reach α, or shares
      fewer than 8 noises between its prompts.

    For many trials and arms on the same prompts, put the p of `max_t_p` in place of `estimates.p_K`.

    With `losses`, a verdict must hold whatever the lost pairs would have shown: a rise with the lowest
    differences as well, a fall with the highest, equivalence with both. With more than 10 % lost there is
    none.
    """
    scenarios = [estimates] if losses is None else [estimates, losses.lowest, losses.highest]
    rises_K = np.all([_excludes_0(found, rule, sign=1) for found in scenarios[:2]], axis=0)
    falls_K = np.all([_excludes_0(found, rule, sign=-1) for found in scenarios[::2]], axis=0)
    rise, fall = ("higher", "lower") if higher_is_better is None else ("better", "worse")
    if higher_is_better is False:
        rise, fall = fall, rise
    word_K = np.where(rises_K, rise, np.where(falls_K, fall, "undecided")).astype("U10")
    if rule.margin is not None:
        within = [_within(found, rule.margin, rule.confidence) for found in scenarios]
        word_K[np.all(within, axis=0)] = "equivalent"
    reason_K = _bars(estimates, rule.confidence, losses)
    word_K[reason_K.astype(bool)] = "undecided"
    return word_K, reason_K


def detectable(estimates: Estimates, rule: Rule) -> Floats:
    """The true difference [K] that this design shows with `rule.power`; NaN without an interval."""
    in_errors = detectable_in_errors(estimates.freedom_K, confidence=rule.confidence, power=rule.power)
    return in_errors * estimates.error_K


def prompts_to_decide(estimates: Estimates, rule: Rule) -> list[int | None]:
    """How many prompts would decide each contrast, at the spread that it has now.

    With a margin: as many as call a true difference of 0 equivalent, and one of ±margin better or worse, each
    with probability `rule.power`. A true difference between the two needs more. Without a margin: as many as
    show the observed difference, were it the true one; being a guess from the data, it is no more than a
    hint. None where no number does (up to 100,000), or where there is no spread to go by.
    """
    effect_K = (
        np.abs(estimates.mean_K) if rule.margin is None else np.full_like(estimates.mean_K, rule.margin)
    )
    if estimates.crossed is None:
        return _nested_prompts_for(estimates, effect_K, rule)
    return [_crossed_prompts_for(estimates, k, float(effect), rule) for k, effect in enumerate(effect_K)]


def fill_lost(
    arm: Floats, control: Floats, *, lowest: float | Floats, highest: float | Floats
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Scores (arm, control) with each lost one (NaN) where it makes differences lowest, and where highest.

    `lowest` and `highest` are the extreme scores of the metric in the whole sweep. Lost images are seldom
    lost at random: an arm that breaks its worst ones would look better without them. Filling in the worst
    observed difference is not enough (with the 10 worst of 96 pairs lost, "better" errs in 8 % instead of
    2.5).
    """
    lost_arm, lost_control = np.isnan(arm), np.isnan(control)
    low = np.where(lost_arm, lowest, arm), np.where(lost_control, highest, control)
    high = np.where(lost_arm, highest, arm), np.where(lost_control, lowest, control)
    return low, high


def better_than_all(words: Sequence[str]) -> bool:
    """Whether an arm is better than every control: each verdict must say so, which needs no correction.

    Intersection-union (Berger 1982): the chance that all claims are wrong is no more than that of one.
    """
    return len(words) > 0 and all(word == "better" for word in words)


def spent_p(p: float, look: int) -> float:
    """The p after this many looks at the same test prompts (the first is 1), by Bonferroni.

    Only the first look, with what was registered for it, is confirmatory. This is what an exploratory one may
    quote beside its own p: eight analyses of the same images, each at its own 2.5 %, find something in 15 to
    17 %.
    """
    return min(1.0, p * look)


def _excludes_0(estimates: Estimates, rule: Rule, *, sign: int) -> Bools:
    """Whether interval and p both show a difference of this sign. False without an interval."""
    low_K, high_K = estimates.interval(rule.confidence)
    beyond_K = low_K > 0 if sign > 0 else high_K < 0
    shown: Bools = beyond_K & (estimates.p_K <= 1 - rule.confidence)
    return shown


def _within(estimates: Estimates, margin: float, confidence: float) -> Bools:
    """Whether both one-sided tests at level 1 − confidence place the difference within ±margin."""
    low_K, high_K = estimates.interval(2 * confidence - 1)
    within: Bools = (low_K > -margin) & (high_K < margin)
    return within


def _bars(estimates: Estimates, confidence: float, losses: Losses | None) -> Texts:
    """Why no verdict may rest on a contrast, whatever its numbers; None where one may."""
    reason_K = estimates.reason_K.copy()
    for k, prompts in enumerate(estimates.prompts_K):
        if reason_K[k] is not None:
            continue
        if too_few(int(prompts), confidence):
            reason_K[k] = f"{prompts} prompts are too few for a verdict at {100 * confidence:g} %"
        elif estimates.crossed == "noise" and estimates.levels < FEWEST_NOISES:
            reason_K[k] = (
                f"all prompts share {estimates.levels} starting noises: a verdict needs {FEWEST_NOISES}, or "
                "noises of each prompt's own"
            )
        elif losses is not None and losses.share_K[k] > MOST_LOST:
            reason_K[k] = f"{100 * losses.share_K[k]:.0f} % of the pairs are lost: more than {MOST_LOST:.0%}"
    return reason_K


def _nested_prompts_for(estimates: Estimates, effect_K: Floats, rule: Rule) -> list[int | None]:
    """N with sqrt(n) / (errors needed at n prompts) ≥ the same of the wanted precision, for all K at once."""
    reach_N, limit = _reach(rule.confidence, rule.power, rule.margin is not None)
    least = next(n for n in range(2, 64) if not too_few(n, rule.confidence))
    found: list[int | None] = []
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted_K = np.sqrt(estimates.prompts_K) * estimates.error_K / effect_K
    for wanted, error in zip(wanted_K, estimates.error_K, strict=True):
        if not error > 0 or not np.isfinite(wanted):
            found.append(None)
            continue
        place = int(np.searchsorted(reach_N, wanted))
        beyond = int(np.ceil((wanted * limit) ** 2))
        prompts = max(least, int(EXACT_PROMPTS[place]) if place < len(EXACT_PROMPTS) else beyond)
        found.append(prompts if prompts <= MOST_PROMPTS else None)
    return found


@lru_cache(maxsize=64)
def _reach(confidence: float, power: float, with_margin: bool) -> tuple[Floats, float]:
    """sqrt(n) / (errors needed) at each of `EXACT_PROMPTS`, and those of any number of prompts."""
    rule = Rule(confidence=confidence, power=power, margin=1.0 if with_margin else None)
    needed_N = _errors_needed((EXACT_PROMPTS - 1).astype(np.float64), rule)
    return np.sqrt(EXACT_PROMPTS) / needed_N, float(_errors_needed(1e9, rule))


def _errors_needed(freedom: Floats | float, rule: Rule) -> Floats:
    """The effect that is decided with `rule.power`, in standard errors."""
    needed = detectable_in_errors(freedom, confidence=rule.confidence, power=rule.power)
    if rule.margin is None:
        return needed
    within = equivalence_in_errors(freedom, confidence=rule.confidence, power=rule.power)
    return np.maximum(needed, within)


def _crossed_prompts_for(estimates: Estimates, k: int, effect: float, rule: Rule) -> int | None:
    error, prompts = estimates.error_K[k], int(estimates.prompts_K[k])
    if not error > 0 or not effect > 0:
        return None
    floor, freedom = estimates.floor_K[k], float(estimates.freedom_K[k])
    shrinking = max(error**2 - floor, 0.0)
    needed = float(_errors_needed(freedom, rule))
    if needed**2 * floor >= effect**2:
        return None

    def enough(n: int) -> bool:
        return bool(needed * np.sqrt(floor + shrinking * prompts / n) <= effect)

    return fewest(enough, least=next(n for n in range(2, 64) if not too_few(n, rule.confidence)))
