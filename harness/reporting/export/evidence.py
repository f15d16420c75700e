"""What the sweep found about a trial, for its card: contrasts with every control, and pairs of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from harness.reporting.export.subject import Subject
from harness.results.contrast import Contrast, number
from harness.results.study import Study

PAIRS = 6  # rows of the contact sheet
COLUMNS = 4  # arms on it


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One image of the sheet."""

    path: str  # relative to the workspace
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One prompt and seed in every arm of the sheet; None if an arm has no image of it."""

    prompt: str
    seed: int
    shots: dict[str, Tile | None]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The trial's best arm on dev, against the controls, on held-out prompts where it was generated there."""

    arm: str
    control: str  # that the selection was made against
    controls: tuple[str, ...]
    primary: str
    split: Literal["dev", "test"]
    contrasts: tuple[Contrast, ...]
    decimals: Mapping[str, int]  # of each metric's differences
    arms: tuple[str, ...]  # of the sheet, left to right
    pairs: tuple[Pair, ...]
    n_pairs: int  # that `pairs` were chosen from

    @property
    def headline(self) -> Contrast | None:
        """The contrast that the sweep was made for."""
        return next(
            (c for c in self.contrasts if c.metric == self.primary and c.control == self.control), None
        )


def gather(subject: Subject) -> Evidence:
    """Everything a card shows of a trial's results."""
    study = Study(subject.results)
    primary, control, controls = study.primary, study.control, study.rivals
    arm, split = study.best_arm(subject.trial_id), study.split_of(subject.trial_id)
    contrasts = [
        c
        for metric in study.metrics
        for name in controls
        if (c := study.contrast(subject.trial_id, arm=arm, control=name, metric=metric, split=split))
    ]
    others = [name for name in controls if name != control][: COLUMNS - 2]
    names = [entry["name"] for entry in study.sweep["arms"] if entry["name"] in (control, arm, *others)]
    pairs = _pairs(subject, names, arm=arm, control=control, primary=primary, split=split)
    return Evidence(
        arm=arm,
        control=control,
        controls=tuple(controls),
        primary=primary,
        split=split,
        contrasts=tuple(contrasts),
        decimals=study.decimals,
        arms=tuple(names),
        pairs=tuple(pairs[place] for place in _spread(len(pairs))),
        n_pairs=len(pairs),
    )


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
            name: Tile(path=by_arm[name]["path"], score=number(by_arm[name]["value"]))
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
