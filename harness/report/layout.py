"""Where trials stand in a grid: two axes as columns and rows, every other combination a panel."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from harness.report.study import Study, known
from harness.report.wording import MISSING, axis_name, axis_value

STEPS = "training.steps"
MOST_TRIALS = 300  # a grid of 2,000 takes minutes to lay out


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One grid: `cells[row][column]` is a trial id, or null where the sweep has no such trial."""

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
    """Steps (else the first numeric axis) as columns, the next as rows; null where nothing varies.

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
    return axis_value("", value) if is_numeric(study, axis) or "." not in axis else str(value)


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
