"""Images on the page: the pairs shown, by rule and not by eye."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from harness.reporting.report.layout import MOST_SHOWN, Family, shown_arms
from harness.reporting.report.thumbnails import Thumbnail, Thumbnails
from harness.results.contrast import number, text
from harness.results.study import Study

SHOWN = 3  # rows in each of best, median and worst


@dataclass(frozen=True, kw_only=True)
class Shot:
    """An image of one arm in a row, with its primary score and the difference from the main control's."""

    arm: str
    score: float | None
    difference: float | None
    reason: str | None
    thumbnail: Thumbnail | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """The same prompt and seed in every arm."""

    prompt: str
    seed: int
    shots: tuple[Shot, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows with what they were chosen by."""

    title: str
    rows: tuple[Row, ...]


def arm_images(study: Study, trial_id: str) -> pd.DataFrame:
    """Images of all arms of a trial, with `value` and `reason` of their primary score."""
    results = study.results
    arms = results.arms.loc[results.arms["trial_id"] == trial_id, ["arm", "arm_id"]]
    scores = results.scores.loc[results.scores["metric"] == study.primary, ["image_id", "value", "reason"]]
    images = results.images.drop(columns=["arm", "trial_id"])
    return arms.merge(images, on="arm_id").merge(scores, on="image_id", how="left")


def differences(study: Study, images: pd.DataFrame, split: str) -> pd.Series:
    """Gain of the headline arm over the main control by (prompt_id, seed), best first, where there is one."""
    on_split = images[images["split"] == split]
    wide = on_split.pivot_table(index=["prompt_id", "seed"], columns="arm", values="value", sort=False)
    if study.arm not in wide or study.control not in wide:
        return pd.Series(dtype=float)
    reference = study.contrast(study.selected, control=study.control, split=split)
    down = reference is not None and reference.higher_is_better is False
    gains = (wide[study.arm] - wide[study.control]).dropna() * (-1 if down else 1)
    return gains.sort_values(ascending=False, kind="stable")


def image_rows(study: Study, thumbnails: Thumbnails) -> tuple[list[Group], Group | None]:
    """Best, median and worst pairs of the selected trial by difference; the others in order of prompt."""
    if study.selected is None:
        return [], None
    images = arm_images(study, study.selected)
    gains = differences(study, images, study.split)
    cells = dict(iter(images.groupby(["prompt_id", "seed"])))
    keys = list(gains.index)
    arms = shown_arms(study)
    chosen = _choose(keys)
    groups = [
        Group(title=title, rows=tuple(_row(study, cells[key], thumbnails, arms) for key in some))
        for title, some in chosen
    ]
    seen = {key for _, some in chosen for key in some}
    every = images.loc[images["split"] == study.split, ["prompt_id", "seed"]].drop_duplicates()
    others = [key for key in every.itertuples(index=False, name=None) if key not in seen]
    rows = []
    for key in others if len(keys) > 3 * SHOWN else []:
        if thumbnails.rows_are_full:
            break
        rows.append(_row(study, cells[key], thumbnails, arms))
    title = f"The other {len(others)} pairs in order of the prompts"
    if len(rows) < len(others):
        title = f"The first {len(rows)} of {len(others)} other pairs in order of the prompts"
    return groups, Group(title=title, rows=tuple(rows)) if rows else None


def family_row(study: Study, family: Family, thumbnails: Thumbnails) -> Row | None:
    """The selected trial's median pair in the control and along a family of arms. Null without pairs."""
    assert study.selected is not None, "a family is shown for the selected trial"
    images = arm_images(study, study.selected)
    gains = differences(study, images, study.split)
    if gains.empty:
        return None
    prompt_id, seed = gains.index[(len(gains) - 1) // 2]
    cell = images[(images["prompt_id"] == prompt_id) & (images["seed"] == seed)]
    arms = [study.control, *(point.arm for point in family.points)]
    return _row(study, cell, thumbnails, arms[:MOST_SHOWN])


def _choose(keys: list[tuple[str, int]]) -> list[tuple[str, list[tuple[str, int]]]]:
    total = len(keys)
    if total <= 3 * SHOWN:
        return [(f"All {total} pairs, best difference first", keys)] if total else []
    middle = (total - SHOWN) // 2
    return [
        (f"The {SHOWN} best of {total} pairs", keys[:SHOWN]),
        (f"The {SHOWN} around the median", keys[middle : middle + SHOWN]),
        (f"The {SHOWN} worst", keys[-SHOWN:]),
    ]


def _row(study: Study, cell: pd.DataFrame, thumbnails: Thumbnails, arms: Sequence[str]) -> Row:
    by_arm = {row["arm"]: row for row in cell.to_dict("records")}
    control = number(by_arm[study.control]["value"]) if study.control in by_arm else None
    first = cell.iloc[0]
    return Row(
        prompt=str(first["prompt"]),
        seed=int(first["seed"]),
        shots=tuple(_shot(arm, by_arm.get(arm), control, study, thumbnails) for arm in arms),
    )


def _shot(arm: str, row: dict | None, control: float | None, study: Study, thumbnails: Thumbnails) -> Shot:
    if row is None:
        return Shot(arm=arm, score=None, difference=None, reason="no image", thumbnail=None)
    score = number(row["value"])
    compared = arm != study.control and score is not None and control is not None
    thumbnail = thumbnails(row["path"])
    reason = "the file is gone or unreadable" if thumbnail is None else text(row["reason"])
    return Shot(
        arm=arm,
        score=score,
        difference=score - control if compared and score is not None and control is not None else None,
        reason=reason,
        thumbnail=thumbnail,
    )
