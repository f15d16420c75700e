"""One row of the summary as a value: what page, card, tracker, terminal and notebooks show of a contrast."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

Finding = Literal["better", "worse", "higher", "lower", "none", "missing"]


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
    win_rate: float | None
    mean_arm: float | None
    mean_control: float | None
    higher_is_better: bool | None
    reason: str | None

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> "Contrast":
        """A row of the summary."""
        p_raw, adjusted = number(row["p_value"]), number(row["p_adjusted"])
        direction = row["higher_is_better"]
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
            win_rate=number(row["win_rate"]),
            mean_arm=number(row["mean_arm"]),
            mean_control=number(row["mean_control"]),
            higher_is_better=None if direction is None or pd.isna(direction) else bool(direction),
            reason=text(row["reason"]),
        )

    @property
    def finding(self) -> Finding:
        """What the numbers show. Interval and test must agree; else no difference is shown."""
        if self.difference is None:
            return "missing"
        if not self.decided:
            return "none"
        up = self.difference > 0
        if self.higher_is_better is None:
            return "higher" if up else "lower"
        return "better" if up == self.higher_is_better else "worse"

    @property
    def decided(self) -> bool:
        """True where the interval excludes zero and p is below 1 − confidence."""
        if self.low is None or self.high is None or self.p is None:
            return False
        return (self.low > 0 or self.high < 0) and self.p < 1 - self.confidence

    @property
    def gain(self) -> float | None:
        """The difference, signed so that more is better; as it is where a metric has no direction."""
        if self.difference is None:
            return None
        return -self.difference if self.higher_is_better is False else self.difference


def is_own(adapter: Mapping[str, Any]) -> bool:
    """True for the trial's own among an arm's adapters, as `sweep.json` lists them."""
    return adapter["recipe"] is None and adapter["file"] is None


def known(value: Any) -> Any:
    """The value, or None for anything missing, as an axis that is not applied."""
    return None if value is None or pd.isna(value) else value


def number(value: Any) -> float | None:
    """A float, or None for anything missing."""
    return None if known(value) is None else float(value)


def text(value: Any) -> str | None:
    """A string, or None for anything missing."""
    return None if known(value) is None else str(value)
