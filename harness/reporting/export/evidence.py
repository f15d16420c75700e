"""What the sweep found about a trial, for its card: contrasts with every control, and pairs of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from harness.reporting.export.subject import Subject

PAIRS = 6  # rows of the contact sheet
COLUMNS = 4  # arms on it


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Arm − control on a metric, from the summary. Numbers are null together, with a reason."""

    control: str
    metric: str
    n_prompts: int
    n_pairs: int
    mean_arm: float | None
    mean_control: float | None
    difference: float | None
    low: float | None
    high: float | None
    confidence: float
    p: float | None  # adjusted over trials × arms (max-T)
    higher_is_better: bool | None
    reason: str | None

    @property
    def decided(self) -> bool:
        """True where interval and test agree that there is a difference."""
        if self.low is None or self.high is None or self.p is None:
            return False
        return (self.low > 0 or self.high < 0) and self.p < 1 - self.confidence


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One image of the sheet."""

    path: str  # relative to the workspace
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One prompt and seed in every arm of the sheet; null where an arm has no image of it."""

    prompt: str
    seed: int
    shots: dict[str, Shot | None]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The trial's best arm on dev, against the controls, on held-out prompts where it was drawn there."""

    arm: str
    control: str  # that the selection was made against
    controls: tuple[str, ...]
    primary: str
    split: Literal["dev", "test"]
    contrasts: tuple[Contrast, ...]
    arms: tuple[str, ...]  # of the sheet, left to right
    pairs: tuple[Pair, ...]
    n_pairs: int  # that `pairs` were chosen from

    @property
    def headline(self) -> Contrast | None:
        """The contrast that the sweep was made for."""
        return next(
            (c for c in self.contrasts if c.metric == self.primary and c.control == self.control), None
        )


def is_own(adapter: Mapping[str, Any]) -> bool:
    """True for the trial's own adapter among those of an arm, as the sweep's file lists them."""
    return adapter["recipe"] is None and adapter["file"] is None


def gather(subject: Subject) -> Evidence:
    """Everything a card shows of a trial's results."""
    sweep = subject.results.sweep
    primary, control = str(sweep["analysis"]["primary"]), str(sweep["analysis"]["control"])
    arms = subject.results.arms
    arms = arms[arms["trial_id"] == subject.trial_id]
    ordered = [arm["name"] for arm in sweep["arms"] if arm["name"] in set(arms["arm"])]
    named = set(arms.loc[arms["is_control"].astype(bool), "arm"])
    controls = [name for name in ordered if name in named]
    summary = subject.results.summary
    summary = summary[summary["trial_id"] == subject.trial_id]
    arm = _best_arm(
        summary, [name for name in ordered if name not in named], control=control, primary=primary
    )
    own = summary[summary["arm"] == arm]
    tested = own[(own["split"] == "test") & (own["metric"] == primary) & own["mean_difference"].notna()]
    split: Literal["dev", "test"] = "test" if len(tested) else "dev"
    metrics = [metric["kind"] for metric in sweep["metrics"]]
    contrasts = [_contrast(row) for row in own[own["split"] == split].to_dict("records")]
    contrasts.sort(key=lambda c: (metrics.index(c.metric), controls.index(c.control)))
    others = [name for name in controls if name != control][: COLUMNS - 2]
    names = [name for name in ordered if name in (control, arm, *others)]
    pairs = _pairs(subject, names, arm=arm, control=control, primary=primary, split=split)
    return Evidence(
        arm=arm,
        control=control,
        controls=tuple(controls),
        primary=primary,
        split=split,
        contrasts=tuple(contrasts),
        arms=tuple(names),
        pairs=tuple(pairs[place] for place in _spread(len(pairs))),
        n_pairs=len(pairs),
    )


def _best_arm(summary: pd.DataFrame, arms: Sequence[str], *, control: str, primary: str) -> str:
    """Of several arms with the trial's adapter, the best on dev; the first where none was measured."""
    rows = summary[
        (summary["split"] == "dev") & (summary["control"] == control) & (summary["metric"] == primary)
    ]
    rows = rows[rows["mean_difference"].notna()]
    if rows.empty:
        return arms[0]
    gain = rows["mean_difference"].where(rows["higher_is_better"].astype(bool), -rows["mean_difference"])
    return str(rows["arm"].iloc[int(gain.to_numpy(dtype=float).argmax())])


def _pairs(
    subject: Subject, names: Sequence[str], *, arm: str, control: str, primary: str, split: str
) -> list[Pair]:
    """Every prompt and seed with an image in both arm and control, best difference first, unscored last."""
    results = subject.results
    arms = results.arms[results.arms["trial_id"] == subject.trial_id]
    scores = results.scores.loc[results.scores["metric"] == primary, ["image_id", "value"]]
    images = results.images.loc[results.images["split"] == split].drop(columns=["arm", "trial_id"])
    found = arms[["arm", "arm_id"]].merge(images, on="arm_id").merge(scores, on="image_id", how="left")
    higher = next(
        (c for c in results.summary.loc[results.summary["metric"] == primary, "higher_is_better"]), True
    )
    sign = 1.0 if pd.isna(higher) or higher else -1.0
    pairs: list[tuple[float, Pair]] = []
    for (prompt, seed), rows in found.groupby(["prompt", "seed"], sort=False):
        by_arm = {str(row["arm"]): row for row in rows.to_dict("records")}
        if arm not in by_arm or control not in by_arm:
            continue
        shots = {
            name: Shot(path=by_arm[name]["path"], score=_number(by_arm[name]["value"]))
            if name in by_arm
            else None
            for name in names
        }
        gain = sign * (by_arm[arm]["value"] - by_arm[control]["value"])
        pairs.append((gain, Pair(prompt=str(prompt), seed=int(str(seed)), shots=shots)))
    pairs.sort(key=lambda pair: (np.isnan(pair[0]), -pair[0]))
    return [pair for _, pair in pairs]


def _spread(count: int) -> list[int]:
    """Places from best to worst, evenly spread, so that a sheet shows neither end alone."""
    return [int(place) for place in np.linspace(0, count - 1, min(count, PAIRS)).round()] if count else []


def _number(value: object) -> float | None:
    return None if value is None or pd.isna(value) else float(value)  # type: ignore[call-overload,arg-type]


def _contrast(row: dict) -> Contrast:
    adjusted, raw = _number(row["p_adjusted"]), _number(row["p_value"])
    direction = row["higher_is_better"]
    return Contrast(
        control=str(row["control"]),
        metric=str(row["metric"]),
        n_prompts=int(row["n_prompts"]),
        n_pairs=int(row["n_pairs"]),
        mean_arm=_number(row["mean_arm"]),
        mean_control=_number(row["mean_control"]),
        difference=_number(row["mean_difference"]),
        low=_number(row["ci_low"]),
        high=_number(row["ci_high"]),
        confidence=float(row["confidence"]),
        p=raw if adjusted is None else adjusted,
        higher_is_better=None if pd.isna(direction) else bool(direction),
        reason=None if row["reason"] is None or pd.isna(row["reason"]) else str(row["reason"]),
    )
