"""Layout of the page: families of arms, and the grid of trials (two axes, a panel per combination)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.config.loading.files import one_line
from harness.results.contrast import known
from harness.results.format import MISSING, axis_name, axis_value
from harness.results.study import Study

MOST_SHOWN = 8  # arms side by side; more would be too small to look at


@dataclass(frozen=True, kw_only=True)
class Point:
    """One arm of a family: its place on the curve, and the line it belongs to (the other values)."""

    arm: str
    x: float
    line: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Adapter arms that differ in numbers, so that they make a curve. Points in order of x."""

    name: str
    axis: str
    points: tuple[Point, ...]

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The curves, in the sweep's order; one empty key where nothing but x varies."""
        return list(dict.fromkeys(point.line for point in self.points))


def families(study: Study) -> list[Family]:
    """Families of adapter arms with a number that varies, in the sweep's order; the first one is x."""
    members: dict[str, list[dict[str, Any]]] = {}
    for arm in study.sweep["arms"]:
        if arm["family"] is not None and arm["name"] in study.adapter_arms:
            members.setdefault(arm["family"], []).append(arm)
    found = (_family(name, arms) for name, arms in members.items())
    return [family for family in found if family is not None]


def _family(name: str, arms: list[dict[str, Any]]) -> Family | None:
    varied = [key for key in arms[0]["params"] if len({str(arm["params"][key]) for arm in arms}) > 1]
    axis = next((key for key in varied if all(_is_number(arm["params"][key]) for arm in arms)), None)
    if axis is None:
        return None
    points = [
        Point(
            arm=arm["name"],
            x=float(arm["params"][axis]),
            line=tuple(f"{param_name(key)} {arm['params'][key]}" for key in varied if key != axis),
        )
        for arm in arms
    ]
    return Family(name=name, axis=axis, points=tuple(sorted(points, key=lambda point: point.x)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def param_name(key: str) -> str:
    """An arm's parameter for people: `scale`, `guidance`; `adapters.1.scale` is `scale of adapter 2`."""
    match = re.fullmatch(r"adapters\.(\d+)\.(\w+)", key)
    return f"{match[2]} of adapter {int(match[1]) + 1}" if match else key.replace("_", " ")


def matched_control(study: Study, arm: str) -> str | None:
    """The control of a family that has the very values of an arm of another: the same guidance, say."""
    own = study.arm_config(arm)
    for control in study.controls:
        config = study.arm_config(control)
        if config["family"] is not None and own["params"] and config["params"] == own["params"]:
            return control
    return None


def shown_arms(study: Study) -> list[str]:
    """The arms of a row of images: controls, then adapter arms; of each family one, at most MOST_SHOWN.

    Of the headline's family that is the headline's arm; of other adapter families the best on dev; of a
    family of controls the one with the headline's values, else the first.
    """
    matched = matched_control(study, study.arm)
    chosen: dict[str, str] = {}
    for name in study.controls:
        family = study.arm_config(name)["family"] or name
        if name in (study.control, matched) or family not in chosen:
            chosen[family] = name
    controls = [name for name in study.controls if name in {*chosen.values(), study.control}]
    best: dict[str, str] = {}
    for name in sorted(study.adapter_arms, key=lambda name: -_gain(study, name)):
        best.setdefault(study.arm_config(name)["family"] or name, name)
    best[study.arm_config(study.arm)["family"] or study.arm] = study.arm
    adapters = [name for name in study.adapter_arms if name in best.values()]
    kept = {study.control, study.arm}
    for name in [*controls, *adapters]:
        if len(kept) < MOST_SHOWN:
            kept.add(name)
    return [name for name in [*controls, *adapters] if name in kept]


def _gain(study: Study, arm: str) -> float:
    found = study.contrast(study.selected, arm=arm, control=study.control, split="dev")
    return -float("inf") if found is None or found.gain is None else found.gain


STEPS = "training.steps"
MOST_TRIALS = 300  # a grid of 2,000 takes minutes to lay out


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One grid: `cells[row][column]` is a trial id, or None if the sweep has no such trial."""

    title: str
    cells: tuple[tuple[str | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Panels that share columns (`x`) and rows (`y`; null for a single row)."""

    x: str
    y: str | None
    x_labels: tuple[str, ...]
    y_labels: tuple[str, ...]
    panels: tuple[Panel, ...]

    @property
    def x_name(self) -> str:
        """Name under the columns."""
        return axis_name(self.x)

    @property
    def y_name(self) -> str:
        """Name beside the rows."""
        return axis_name(self.y) if self.y else ""


def is_numeric(study: Study, axis: str) -> bool:
    """True where all values of an axis are numbers."""
    values = study.results.trials[axis].dropna()
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def layout(study: Study) -> Layout | None:
    """Steps (else the first numeric axis) as columns, the next as rows; None if nothing varies.

    Null, too, for more trials than anyone looks over: their table has them all.
    """
    if not study.axes or study.search != "grid":  # other searches leave nearly all of the product empty
        return None
    if len(study.results.trials) > MOST_TRIALS:
        return None
    ordered = sorted(study.axes, key=lambda axis: (axis != STEPS, not is_numeric(study, axis)))
    x, y = ordered[0], ordered[1] if len(ordered) > 1 else None
    rest = [axis for axis in study.axes if axis not in (x, y)]
    columns = _values(study, x)
    rows: list[object] = _values(study, y) if y else [None]
    return Layout(
        x=x,
        y=y,
        x_labels=tuple(_short(study, x, value) for value in columns),
        y_labels=tuple(_short(study, y, value) for value in rows) if y else ("",),
        panels=tuple(
            Panel(title=title, cells=_cells(trials, x, y, columns, rows))
            for title, trials in _groups(study, rest, [x, y])
        ),
    )


def _values(study: Study, axis: str) -> list[object]:
    values = study.results.trials[axis]
    given: list[object] = list(values.dropna().unique())
    return (sorted(given) if is_numeric(study, axis) else given) + [None] * bool(values.isna().any())  # type: ignore[type-var]


def _short(study: Study, axis: str, value: object) -> str:
    if value is None:
        return MISSING
    return axis_value("", value) if is_numeric(study, axis) or "." not in axis else one_line(value)


def _groups(study: Study, rest: list[str], grid: list[str | None]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Trials by the values of the remaining axes; trials that differ in no label get panels of their own."""
    trials = study.results.trials
    named = [axis for axis in grid if axis]
    twin = trials.groupby([*named, *rest], dropna=False).cumcount() + 1
    for key, group in trials.groupby([*rest, twin], sort=False, dropna=False):
        *values, copy = key if isinstance(key, tuple) else (key,)
        words = [axis_value(axis, known(value)) for axis, value in zip(rest, values, strict=True)]
        yield " · ".join(words + [f"variant {copy}"] * bool((twin > 1).any())), group


def _cells(
    trials: pd.DataFrame, x: str, y: str | None, columns: list[object], rows: list[object]
) -> tuple[tuple[str | None, ...], ...]:
    at = {(known(row[y]) if y else None, known(row[x])): row["trial_id"] for _, row in trials.iterrows()}
    return tuple(tuple(at.get((r, c)) for c in columns) for r in rows)
