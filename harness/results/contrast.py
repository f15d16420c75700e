"""One row of the summary as a value: what page, card, tracker, terminal and notebooks show of a contrast."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import pandas as pd

from harness.results.format import count, p_text

Finding = Literal["better", "worse", "higher", "lower", "equivalent", "undecided", "missing"]
GOOD, BAD = frozenset({"better", "higher"}), frozenset({"worse", "lower"})
SHOWN = GOOD | BAD


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Arm − control on a metric. Numbers are None together, with a reason."""

    trial_id: str
    arm: str
    control: str
    metric: str
    split: str
    n_prompts: int
    n_pairs: int
    n_missing: int
    difference: float | None
    low: float | None
    high: float | None
    confidence: float
    p: float | None  # adjusted over trials × arms (max-T); None where there is none
    p_raw: float | None
    family: int  # comparisons that p is adjusted for
    win_rate: float | None
    mean_arm: float | None
    mean_control: float | None
    higher_is_better: bool | None
    verdict: str | None  # None where there is no difference
    verdict_reason: str | None  # why, where the numbers alone do not say so
    margin: float | None
    detectable: float | None  # the true difference that the design finds in 80 %
    prompts_to_decide: int | None
    skewness: float | None
    reason: str | None  # why a number is None

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> "Contrast":
        """A row of the summary."""
        p_raw, adjusted = number(row["p_value"]), number(row["p_adjusted"])
        direction, to_decide = row["higher_is_better"], number(row["prompts_to_decide"])
        return cls(
            trial_id=row["trial_id"],
            arm=row["arm"],
            control=row["control"],
            metric=row["metric"],
            split=row["split"],
            n_prompts=int(number(row["n_prompts"]) or 0),
            n_pairs=int(number(row["n_pairs"]) or 0),
            n_missing=int(number(row["n_missing"]) or 0),
            difference=number(row["mean_difference"]),
            low=number(row["ci_low"]),
            high=number(row["ci_high"]),
            confidence=float(row["confidence"]),
            p=p_raw if adjusted is None else adjusted,
            p_raw=p_raw,
            family=int(number(row["family"]) or 0),
            win_rate=number(row["win_rate"]),
            mean_arm=number(row["mean_arm"]),
            mean_control=number(row["mean_control"]),
            higher_is_better=None if direction is None or pd.isna(direction) else bool(direction),
            verdict=text(row["verdict"]),
            verdict_reason=text(row["verdict_reason"]),
            margin=number(row["margin"]),
            detectable=number(row["detectable"]),
            prompts_to_decide=None if to_decide is None else int(to_decide),
            skewness=number(row["skewness"]),
            reason=text(row["reason"]),
        )

    @property
    def finding(self) -> Finding:
        """The verdict; missing where there is no difference, undecided where nothing was tested yet."""
        return "missing" if self.difference is None else cast(Finding, self.verdict or "undecided")

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: interval and test agree, and lost pairs could not undo it."""
        return self.finding in SHOWN

    @property
    def note(self) -> str | None:
        """What a reader of its row needs to know beside the numbers; None where they speak for themselves."""
        if self.reason or self.verdict_reason:
            return self.reason or self.verdict_reason
        if self.finding != "undecided" or self.low is None or self.high is None or self.p is None:
            return None
        alpha = 1 - self.confidence
        if self.low > 0 or self.high < 0:
            if self.p <= alpha:
                return f"does not hold whatever the {count(self.n_missing, 'lost pair')} would have shown"
            if self.p_raw is not None and self.p_raw <= alpha:
                return (
                    f"p is {p_text(self.p_raw)} by itself, {p_text(self.p)} among {self.family} comparisons"
                )
            return "the interval shows a difference and the sign-flip test does not"
        if self.p <= alpha:
            return "the sign-flip test shows a difference and the interval does not"
        return None

    @property
    def gain(self) -> float | None:
        """The difference, signed so that more is better; as it is where a metric has no direction."""
        if self.difference is None:
            return None
        return -self.difference if self.higher_is_better is False else self.difference


def is_own(adapter: Mapping[str, Any]) -> bool:
    """True for the trial's own among an arm's adapters, as `sweep.json` lists them."""
    return all(adapter.get(source) is None for source in ("recipe", "sham", "file", "hub"))


def known(value: Any) -> Any:
    """The value, or None for anything missing, as an axis that is not applied."""
    return None if value is None or pd.isna(value) else value


def number(value: Any) -> float | None:
    """A float, or None for anything missing."""
    return None if known(value) is None else float(value)


def text(value: Any) -> str | None:
    """A string, or None for anything missing."""
    return None if known(value) is None else str(value)
