"""Figures of numbers: heat map, dose–response, paired slopes, forest, parallel coordinates, metric by metric.

Frames are those of `Results`: `summary` (one row per contrast) or `pairs()` (one row per pair), filtered to
one metric, control and split by the caller.
"""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.errors import ConfigError
from harness.results.format import (
    MISSING,
    axis_name,
    decimals_for,
    figure_text,
    interval,
    metric_name,
    signed,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito: colour-blind
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
UP, DOWN, FLAT = "#0072b2", "#d55e00", "#999999"
MEAN, LOW, HIGH = "mean_difference", "ci_low", "ci_high"


def heat_map(summary: pd.DataFrame, *, x: str, y: str, ax: "Axes | None" = None) -> "Axes":
    """Mean difference by two columns, its interval in each cell; an interval without 0 is in bold.

    Raises ConfigError where a cell would hold several rows.
    """
    ax = ax or _axes()
    frame = _needed(summary, x, y, MEAN, LOW, HIGH)
    if frame.duplicated([x, y]).any():
        raise ConfigError(
            f"heat_map: several rows have the same {x} and {y}; filter the frame to one arm, control, "
            "metric, split, and value of each other axis"
        )
    table = frame.set_index([y, x])
    columns, rows = _values(frame, x), _values(frame, y)
    value_YX = np.array([[_cell(table, (r, c), MEAN) for c in columns] for r in rows])
    limit = float(np.nanmax(np.abs(value_YX))) if np.isfinite(value_YX).any() else 1.0
    image = ax.imshow(value_YX, cmap="PuOr", vmin=-limit or -1.0, vmax=limit or 1.0, aspect="auto")
    decimals = decimals_for(float((frame[HIGH] - frame[LOW]).median()))
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            mean, low, high = (_cell(table, (r, c), column) for column in (MEAN, LOW, HIGH))
            if not np.isfinite(mean):
                ax.text(j, i, MISSING, ha="center", va="center")
                continue
            limits = interval(low, high, decimals) if np.isfinite(low) else ""
            weight = "bold" if low > 0 or high < 0 else "normal"
            colour = "white" if abs(mean) > 0.6 * limit else "black"
            text = f"{signed(mean, decimals)}\n{limits}"
            ax.text(j, i, text, ha="center", va="center", weight=weight, color=colour, fontsize=8)
    ax.set_xticks(range(len(columns)), [*map(figure_text, columns)])
    ax.set_yticks(range(len(rows)), [*map(figure_text, rows)])
    ax.set_xlabel(axis_name(x))
    ax.set_ylabel(axis_name(y))
    ax.figure.colorbar(image, ax=ax, label="difference")
    return ax


def dose_response(
    summary: pd.DataFrame, *, x: str, by: Sequence[str] = (), ax: "Axes | None" = None
) -> "Axes":
    """Mean difference with its interval over a numeric column, a line for each value of `by`."""
    ax = ax or _axes()
    frame = _needed(summary, x, *by, MEAN, LOW, HIGH).dropna(subset=[MEAN])
    if not pd.api.types.is_numeric_dtype(frame[x]):
        raise ConfigError(f"dose_response: {x} has words; give a column of numbers, or draw a forest of it")
    ax.axhline(0, color=FLAT, linewidth=1)
    groups = list(frame.groupby(list(by), sort=False)) if by else [((), frame)]
    apart = 0.008 * float(frame[x].max() - frame[x].min()) if len(groups) > 1 else 0.0
    for place, (key, rows) in enumerate(groups):
        rows = rows.sort_values(x)
        at = rows[x].to_numpy(dtype=float) + apart * (place - len(groups) / 2)  # so that bars do not hide
        mean = rows[MEAN].to_numpy(dtype=float)
        spread = np.abs(rows[[LOW, HIGH]].to_numpy(dtype=float).T - mean)
        ax.errorbar(at, mean, yerr=spread, capsize=2, label=_label(by, key), **_style(place))
    ax.set_xlabel(axis_name(x))
    ax.set_ylabel("difference")
    if by:
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def slopes(pairs: pd.DataFrame, *, ax: "Axes | None" = None) -> "Axes":
    """Control → arm, a line per prompt: its mean over seeds. Blue rises, orange falls, black is the mean."""
    ax = ax or _axes()
    frame = _needed(pairs, "prompt_id", "value_control", "value_arm", "control", "arm").dropna()
    means = frame.groupby("prompt_id")[["value_control", "value_arm"]].mean()
    for control, arm in means.to_numpy():
        ax.plot([0, 1], [control, arm], color=UP if arm > control else DOWN, alpha=0.5, marker="o", ms=3)
    ax.plot([0, 1], means.mean().to_numpy(), color="black", linewidth=2.5, marker="o")
    names = [listed_names(frame["control"]), listed_names(frame["arm"])]
    ax.set_xticks([0, 1], names)
    ax.set_xlim(-0.2, 1.2)
    ax.set_ylabel(listed_names(pairs["metric"].map(metric_name)) if "metric" in pairs else "score")
    ax.set_title(f"{(means['value_arm'] > means['value_control']).sum()} of {len(means)} prompts rise")
    return ax


def forest(summary: pd.DataFrame, *, label: Sequence[str], ax: "Axes | None" = None) -> "Axes":
    """Difference and interval of each row, largest first; `label` are the columns that name a row."""
    ax = ax or _axes(height=0.3 * len(summary) + 1.2)
    frame = _needed(summary, *label, MEAN, LOW, HIGH).dropna(subset=[MEAN]).sort_values(MEAN)
    ax.axvline(0, color=FLAT, linewidth=1)
    for place, (_, row) in enumerate(frame.iterrows()):
        colour = UP if row[LOW] > 0 else DOWN if row[HIGH] < 0 else FLAT
        ax.plot([row[LOW], row[HIGH]], [place, place], color=colour)
        ax.plot(row[MEAN], place, marker="o", color=colour)
    names = [_label(label, tuple(row[column] for column in label)) for _, row in frame.iterrows()]
    ax.set_yticks(range(len(frame)), names)
    ax.set_xlabel("difference")
    return ax


def parallel_coordinates(
    frame: pd.DataFrame, *, columns: Sequence[str], value: str = MEAN, ax: "Axes | None" = None
) -> "Axes":
    """A line per row through its settings (`columns`) to its value, coloured by the value.

    Each axis runs from its lowest to its highest; a column of words has one place for each.
    """
    from matplotlib import colormaps

    ax = ax or _axes()
    rows = _needed(frame, *columns, value).dropna(subset=[value]).sort_values(value)
    every = [*columns, value]
    place_RC = np.column_stack([_places(rows[column]) for column in every])
    shade_R = _places(rows[value])
    colours = colormaps["viridis"]
    for places, shade in zip(place_RC, shade_R, strict=True):
        ax.plot(range(len(every)), places, color=colours(0.85 * shade), alpha=0.8)
    for at, column in enumerate(every):
        ax.axvline(at, color=FLAT, linewidth=1)
        for text, place in _ticks(rows[column]):
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            offset: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(text, (at, place), fontsize=8, bbox=box, **offset)
    ax.set_xticks(range(len(every)), [*map(axis_name, columns), "difference" if value == MEAN else value])
    ax.set_yticks([])
    ax.set_xlim(-0.2, len(every) - 0.4)
    return ax


def metric_by_metric(pairs: pd.DataFrame, *, x: str, y: str, ax: "Axes | None" = None) -> "Axes":
    """A dot per prompt: its mean difference in one metric against that in another, with Spearman's ρ.

    A guard that moves together with the score (ρ far from 0) may be all that the scorer has seen.
    """
    ax = ax or _axes()
    frame = _needed(pairs, "prompt_id", "metric", "difference")
    known = list(dict.fromkeys(frame["metric"]))
    if missing := [metric for metric in (x, y) if metric not in known]:
        raise ConfigError(f"metric_by_metric: no {missing[0]!r} in the frame; there are {', '.join(known)}")
    means = frame.pivot_table(index="prompt_id", columns="metric", values="difference").dropna(subset=[x, y])
    ax.axhline(0, color=FLAT, linewidth=1)
    ax.axvline(0, color=FLAT, linewidth=1)
    ax.scatter(means[x], means[y], color=UP)
    ranks = means[[x, y]].rank()
    rho = float(ranks[x].corr(ranks[y])) if len(means) > 2 else float("nan")
    ax.set_title(f"{len(means)} prompts, ρ = {signed(rho, 2) if np.isfinite(rho) else MISSING}")
    ax.set_xlabel(f"difference in {metric_name(x)}")
    ax.set_ylabel(f"difference in {metric_name(y)}")
    return ax


def listed_names(values: pd.Series) -> str:
    """The names in a column, each once, for a figure."""
    return figure_text(", ".join(dict.fromkeys(values.astype(str))))


def _axes(height: float = 4.0) -> "Axes":
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, height), layout="constrained")[1]


def _needed(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """These columns. Raises ConfigError where the frame lacks one."""
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        raise ConfigError(
            f"the frame has no column {absent[0]!r}; it has {', '.join(map(str, frame.columns))}"
        )
    return frame[list(dict.fromkeys(columns))]


def _values(frame: pd.DataFrame, column: str) -> list[Hashable]:
    """Numbers ascending, words in their order, missing ones last."""
    values = frame[column]
    given: list[Any] = list(values.dropna().unique())
    if pd.api.types.is_numeric_dtype(values):
        given.sort()
    return given + [None] * bool(values.isna().any())


def _cell(table: pd.DataFrame, key: tuple[Hashable, Hashable], column: str) -> float:
    return float(table[column].get(key, np.nan))


def _label(columns: Sequence[str], key: Any) -> str:
    values = key if isinstance(key, tuple) else (key,)
    words = (
        f"{axis_name(column)} {value:g}" if isinstance(value, int | float) else figure_text(value)
        for column, value in zip(columns, values, strict=False)
    )
    return " · ".join(words)


def _style(place: int) -> dict[str, Any]:
    """No two of the first 42 lines share both."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def _places(values: pd.Series) -> np.ndarray:
    """Values on an axis from 0 to 1."""
    if not pd.api.types.is_numeric_dtype(values):
        values = pd.Series(pd.factorize(values.astype(str))[0])
    numbers = values.to_numpy(dtype=float)
    spread = np.nanmax(numbers) - np.nanmin(numbers)
    return (numbers - np.nanmin(numbers)) / spread if spread > 0 else np.full(len(numbers), 0.5)


def _ticks(values: pd.Series) -> list[tuple[str, float]]:
    """What stands beside an axis: every value where there are few, else the two ends."""
    places = _places(values)
    found = dict(zip(values.tolist(), places.tolist(), strict=True))
    if len(found) > 8:
        found = {value: place for value, place in found.items() if place in (0.0, 1.0)}
    return [
        (f"{v:.3g}" if isinstance(v, int | float) else figure_text(v), place) for v, place in found.items()
    ]
