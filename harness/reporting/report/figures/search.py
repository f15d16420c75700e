"""What a search found that is no grid: effect over each axis, all axes at once, importance, Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.config.loading.files import one_line
from harness.config.schema.search import LossObjective, OptunaSearch
from harness.reporting.report.figures.svg import BLUE, INK, MUTED, ORANGE, RULE, inline, page_style
from harness.reporting.report.layout import is_numeric
from harness.results.contrast import known
from harness.results.format import axis_name, metric_name
from harness.results.objectives import gains
from harness.results.study import Study

Floats = NDArray[np.float64]

MOST_AXES = 12
FEWEST = 4  # trials with a number; fewer say nothing
RESAMPLES = 500
SEED = 0
COLOURS = "viridis"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One figure with its caption."""

    title: str
    svg: Markup
    caption: str


def search_figures(study: Study) -> list[Found]:
    """Figures of a search that is no grid. Empty for a grid, and with fewer than four trials."""
    if study.search == "grid":
        return []
    table = _table(study)
    axes = [axis for axis in study.axes if table[axis].notna().sum() >= FEWEST][:MOST_AXES]
    if len(table) < FEWEST or not axes:
        return []
    what = f"difference in {metric_name(study.primary)} from {study.control} on the dev prompts"
    found = [
        Found(
            title="Effect over each axis",
            svg=_scatter(study, table, axes),
            caption=f"A point is a trial: its {what}, over each axis. The search chose where to look, so "
            "points are denser where it expected more; the selected trial is orange.",
        ),
        Found(
            title="Importance of the axes",
            svg=_importance(study, table, axes),
            caption="How strongly the order of the trials follows each axis: |rank correlation|, for "
            "unordered values the correlation ratio of ranks. Bars are 95 % bootstrap intervals over "
            "trials; the grey mark is what shuffled values reach in 5 % of cases, so an axis whose "
            "bar begins below it may do nothing.",
        ),
    ]
    if len(axes) > 1:
        parallel = Found(
            title="All axes at once",
            svg=_parallel(study, table, axes),
            caption=f"A line is a trial; the last axis is its {what}, which colours it, brighter for more.",
        )
        found.insert(1, parallel)
    pareto = _pareto(study)
    return [*found, pareto] if pareto else found


def _table(study: Study) -> pd.DataFrame:
    """Trials with a dev difference, as `difference`, and the axes' values."""
    values = {
        trial_id: c.difference
        for trial_id in study.labels
        if (c := study.contrast(trial_id, control=study.control, split="dev")) is not None
        and c.difference is not None
    }
    trials = study.results.trials.set_index("trial_id").loc[list(values)]
    return trials.assign(difference=pd.Series(values, dtype=float))


def _places(study: Study, axis: str, values: pd.Series) -> tuple[Floats, list[float], list[str]]:
    """Where the values stand on an axis, and its ticks; NaN where an axis is not applied."""
    if is_numeric(study, axis):
        given = values.astype(float)
        return np.asarray(given.to_numpy(dtype=np.float64)), [], []
    names = list(dict.fromkeys(str(value) for value in study.results.trials[axis].dropna()))
    places = [names.index(str(v)) if known(v) is not None else np.nan for v in values]
    return np.array(places, dtype=float), [float(place) for place in range(len(names))], names


def _is_log(values: Floats) -> bool:
    """True for positive values over more than a factor of 30, as learning rates are."""
    given = values[np.isfinite(values)]
    return bool(len(given) and given.min() > 0 and given.max() > 30 * given.min())


def _scatter(study: Study, table: pd.DataFrame, axes: Sequence[str]) -> Markup:
    across = min(3, len(axes))
    down = -(-len(axes) // across)
    chosen = table.index == study.selected
    with page_style():
        figure = Figure(figsize=(2.6 * across + 0.4, 2.3 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
        for panel, axis in zip(panels, axes, strict=False):
            x, ticks, names = _places(study, axis, table[axis])
            panel.axhline(0, color=MUTED, linewidth=0.9, zorder=0)
            panel.plot(
                x[~chosen], table["difference"][~chosen], "o", color=BLUE, markersize=4, alpha=0.65, mew=0
            )
            panel.plot(x[chosen], table["difference"][chosen], "D", color=ORANGE, markersize=7)
            if names:
                panel.set_xticks(ticks, [_cut(name) for name in names], rotation=30, ha="right")
                panel.margins(x=0.15)
            elif _is_log(x):
                panel.set_xscale("log")
            panel.set_xlabel(axis_name(axis))
        for panel in panels[len(axes) :]:
            panel.set_visible(False)
        for row in range(down):
            panels[row * across].set_ylabel(f"difference from {_cut(study.control)}")
        return inline(figure, name="scatter", alt="Difference over each axis of the search.")


def _cut(name: str) -> str:
    return one_line(name, 18)


def _scaled(values: Floats) -> Floats:
    """Between 0 and 1, logarithmic where `_is_log`."""
    given = np.log(values) if _is_log(values) else values
    low, high = np.nanmin(given), np.nanmax(given)
    scaled: Floats = (given - low) / (high - low) if high > low else np.full_like(given, 0.5)
    return scaled


def _parallel(study: Study, table: pd.DataFrame, axes: Sequence[str]) -> Markup:
    columns = [_places(study, axis, table[axis]) for axis in axes]
    difference = table["difference"].to_numpy(dtype=float)
    scaled = np.column_stack([*(_scaled(x) for x, _, _ in columns), _scaled(difference)])
    norm = Normalize(difference.min(), difference.max() or 1.0)
    names = [*(axis_name(axis) for axis in axes), "difference"]
    with page_style():
        figure = Figure(figsize=(1.25 * len(names) + 1, 3.4), layout="constrained")
        panel = figure.subplots()
        for place in np.argsort(difference):
            chosen = table.index[place] == study.selected
            colour = ORANGE if chosen else to_hex(colormaps[COLOURS](0.92 * norm(difference[place])))
            width = 2.2 if chosen else 1.0
            panel.plot(
                range(len(names)), scaled[place], color=colour, linewidth=width, alpha=1 if chosen else 0.6
            )
        ends = [*((x, named) for x, _, named in columns), (difference, [])]
        for at, (x, named) in enumerate(ends):
            panel.axvline(at, color=RULE, linewidth=1, zorder=0)
            _ends(panel, at, x, named)
        panel.set_xticks(range(len(names)), names, rotation=20, ha="right")
        panel.set_yticks([])
        panel.set_ylim(-0.12, 1.14)
        panel.spines[:].set_visible(False)
        return inline(figure, name="parallel", alt="Parallel coordinates of all trials.")


def _ends(panel: Axes, at: int, x: Floats, named: Sequence[str]) -> None:
    """The least value below a coordinate, the greatest above it; every name of one without an order."""
    if named:
        for place, name in enumerate(named):
            y = 0.5 if len(named) == 1 else place / (len(named) - 1)
            panel.text(at + 0.04, y, _cut(name), color=INK, fontsize=7, va="bottom")
        return
    panel.text(at, -0.03, f"{np.nanmin(x):.3g}", color=MUTED, fontsize=7, ha="center", va="top")
    panel.text(at, 1.03, f"{np.nanmax(x):.3g}", color=MUTED, fontsize=7, ha="center", va="bottom")


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How strongly the order of the trials follows an axis, 0 to 1."""

    axis: str
    value: float
    low: float
    high: float
    chance: float  # reached by shuffled values in 5 % of cases


def importance(study: Study, table: pd.DataFrame, axes: Sequence[str]) -> list[Importance]:
    """Of each axis alone, strongest first. `table` has the column `difference` and the axes."""
    rng = np.random.default_rng(SEED)
    found = []
    for axis in axes:
        x, _, names = _places(study, axis, table[axis])
        there = np.isfinite(x)
        x, y = x[there], table["difference"].to_numpy(dtype=float)[there]
        strength = _ratio if names else _correlation
        again = []
        for _ in range(RESAMPLES):
            rows = rng.integers(0, len(x), len(x))
            again.append(strength(x[rows], y[rows]))
        shuffled = [strength(rng.permutation(x), y) for _ in range(RESAMPLES)]
        low, high = np.quantile(again, [0.025, 0.975])
        found.append(
            Importance(
                axis=axis,
                value=strength(x, y),
                low=float(low),
                high=float(high),
                chance=float(np.quantile(shuffled, 0.95)),
            )
        )
    return sorted(found, key=lambda one: -one.value)


def _ranks(values: Floats) -> Floats:
    return np.asarray(pd.Series(values).rank().to_numpy(dtype=float))


def _correlation(x: Floats, y: Floats) -> float:
    """|Spearman's ρ|; 0 where either does not vary."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return abs(float((a * b).sum()) / length) if length else 0.0


def _ratio(x: Floats, y: Floats) -> float:
    """Correlation ratio η of ranks over unordered values; 0 where the ranks do not vary."""
    ranks = _ranks(y)
    total = float(((ranks - ranks.mean()) ** 2).sum())
    between = sum(
        float((x == value).sum()) * (ranks[x == value].mean() - ranks.mean()) ** 2 for value in np.unique(x)
    )
    return float(np.sqrt(between / total)) if total else 0.0


def _importance(study: Study, table: pd.DataFrame, axes: Sequence[str]) -> Markup:
    rows = importance(study, table, axes)
    with page_style():
        figure = Figure(figsize=(5.4, 0.34 * len(rows) + 0.8), layout="constrained")
        panel = figure.subplots()
        for y, row in enumerate(rows):
            panel.barh(y, row.value, height=0.5, color=BLUE, alpha=0.5)
            panel.plot([row.low, row.high], [y, y], color=INK, linewidth=1.5)
            panel.plot([row.chance, row.chance], [y - 0.38, y + 0.38], color=MUTED, linewidth=2)
        panel.set_yticks(range(len(rows)), [axis_name(row.axis) for row in rows])
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_xlim(0, 1)
        panel.set_xlabel("importance")
        return inline(figure, name="importance", alt="Importance of each axis with its interval.")


def _pareto(study: Study) -> Found | None:
    """The first two of several objectives, the front in orange. None for one objective."""
    if study.search != "optuna":
        return None
    objectives = OptunaSearch.model_validate(study.sweep["search"]).objectives
    if len(objectives) < 2:
        return None
    values = gains(study.results.trials, study.results.summary, objectives).dropna()
    if values.empty:
        return None
    names = [
        "held-out loss, negated" if isinstance(o, LossObjective) else f"gain in {metric_name(str(o.metric))}"
        for o in objectives
    ]
    front = values.index.isin(study.pareto_front)
    with page_style():
        figure = Figure(figsize=(5.0, 3.4), layout="constrained")
        panel = figure.subplots()
        panel.plot(values.loc[~front, 0], values.loc[~front, 1], "o", color=BLUE, alpha=0.65, markersize=5)
        best = values[front].sort_values(by=[0])  # type: ignore[list-item]
        panel.plot(best[0], best[1], "D-", color=ORANGE, markersize=6, linewidth=1)
        panel.set_xlabel(f"{names[0]} (more is better)")
        panel.set_ylabel(names[1])
        svg = inline(figure, name="pareto", alt="Pareto front of the objectives.")
    more = f" The other {len(names) - 2} objectives are not drawn." if len(names) > 2 else ""
    return Found(
        title="Pareto front",
        svg=svg,
        caption=f"Orange: trials that no other beats in all objectives, on dev prompts.{more}",
    )
