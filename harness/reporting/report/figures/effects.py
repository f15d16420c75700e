"""The page's figures: effects with their intervals, the grid of the sweep, the dose–response."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from harness.reporting.report.figures.svg import BLUE, INK, MUTED, ORANGE, RULE, inline, look, page_style
from harness.reporting.report.layout import STEPS, Layout, Panel, is_numeric, layout
from harness.results.contrast import Contrast, known
from harness.results.format import axis_name, axis_value, interval, metric_name, signed
from harness.results.study import Study

DIVERGING = "PuOr_r"  # orange above zero, purple below; safe for colour-blind readers and in grey
ROW = 0.25  # inches per row of the effect plot
MOST_LINES = 8  # of one panel of the dose–response
MOST_PANELS = 24  # of it; the page's grid and table have all
MOST_ROWS = 40  # of the effect plot; the tables have all


def forest(study: Study) -> Markup | None:
    """Every trial's dev contrast with the chosen control, best first, and the selected trial's on test."""
    rows = _forest_rows(study)
    if not rows:
        return None
    decimals = study.decimals[study.primary]
    with page_style():
        figure = Figure(figsize=(7.2, ROW * len(rows) + 0.9))
        axes = figure.add_axes((0.30, 0.0, 0.40, 1.0))
        for y, (label, contrast) in enumerate(rows):
            _forest_row(axes, y, label, contrast, decimals, chosen=_is_chosen(study, contrast))
        axes.axvline(0, color=MUTED, linewidth=0.9, zorder=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        confidence = 100 * rows[0][1].confidence
        axes.set_xlabel(
            f"difference in {metric_name(study.primary)} from {study.control} ({confidence:g} % interval)"
        )
        alt = f"Effect plot: {_what(study)} for each trial, with intervals."
        return inline(figure, name="forest", alt=alt)


def forest_narrow(study: Study) -> Markup | None:
    """The same for a narrow screen: each name stands above its bar."""
    rows = _forest_rows(study)
    if not rows:
        return None
    decimals = study.decimals[study.primary]
    with page_style():
        figure = Figure(figsize=(3.3, 1.9 * ROW * len(rows) + 0.7))
        axes = figure.add_axes((0.02, 0.0, 0.96, 1.0))
        for y, (label, contrast) in enumerate(rows):
            weight = "bold" if _is_chosen(study, contrast) else "normal"
            _bar(axes, y, contrast)
            words = f"{label}   {signed(contrast.difference, decimals)}"
            place = axes.get_yaxis_transform()
            axes.text(0, y - 0.3, words, transform=place, va="center", fontsize=8, fontweight=weight)
        axes.axvline(0, color=MUTED, linewidth=0.9, zorder=0)
        axes.set_ylim(len(rows) - 0.4, -0.7)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        axes.set_xlabel(f"difference from {study.control}")
        return inline(figure, name="forest-narrow", alt=f"Effect plot: {_what(study)} for each trial.")


def forest_hidden(study: Study) -> int:
    """How many contrasts the effect plot has no room for."""
    contrasts = (
        study.contrast(trial_id, arm=arm, control=study.control, split="dev")
        for arm in study.adapter_arms
        for trial_id in study.labels
    )
    known = sum(c is not None and c.difference is not None for c in contrasts)
    return max(0, known - MOST_ROWS)


def _what(study: Study) -> str:
    return f"difference in {metric_name(study.primary)} from {study.control}"


def _forest_rows(study: Study) -> list[tuple[str, Contrast]]:
    arms = study.adapter_arms
    rows = []
    for arm in arms:
        for trial_id, label in study.labels.items():
            dev = study.contrast(trial_id, arm=arm, control=study.control, split="dev")
            if dev is not None and dev.difference is not None:
                rows.append((f"{label} · {arm}" if len(arms) > 1 else label, dev))
    rows.sort(key=lambda row: -(row[1].gain or 0.0))
    rows = rows[:MOST_ROWS]
    test = study.contrast(study.selected, control=study.control, split="test")
    if test is not None and test.difference is not None:
        rows.insert(0, ("selected, on held-out prompts", test))
    return rows


def _is_chosen(study: Study, contrast: Contrast) -> bool:
    return contrast.trial_id == study.selected and contrast.arm == study.arm


def _forest_row(axes: Axes, y: int, label: str, contrast: Contrast, decimals: int, *, chosen: bool) -> None:
    weight = "bold" if chosen else "normal"
    _bar(axes, y, contrast)
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontweight": weight}
    axes.text(-0.04, y, label, ha="right", **beside)
    numbers = f"{signed(contrast.difference, decimals)}  {interval(contrast.low, contrast.high, decimals)}"
    axes.text(1.04, y, numbers, ha="left", **beside)
    axes.text(1.62, y, f"n = {contrast.n_prompts}", ha="left", color=MUTED, **beside)


def _bar(axes: Axes, y: float, contrast: Contrast) -> None:
    """Difference and interval of one row."""
    test = contrast.split == "test"
    colour = ORANGE if test else BLUE
    if contrast.low is not None and contrast.high is not None:
        axes.plot(
            [contrast.low, contrast.high],
            [y, y],
            color=colour,
            linewidth=2.2 if test else 1.5,
            solid_capstyle="butt",
        )
    assert contrast.difference is not None, "rows without a number are not drawn"
    axes.plot(
        [contrast.difference],
        [y],
        marker="D" if test else "o",
        color=colour,
        markersize=6.5 if test else 5,
        linestyle="",
    )


def heatmap(study: Study) -> Markup | None:
    """The sweep as a grid of dev contrasts, in panels. None if nothing varies."""
    grid = layout(study)
    if grid is None:
        return None
    values = [
        c.difference
        for trial_id in study.labels
        if (c := study.contrast(trial_id, control=study.control, split="dev")) and c.difference is not None
    ]
    reach = max((abs(v) for v in values), default=1.0) or 1.0
    n_x, n_y, n = len(grid.x_labels), len(grid.y_labels), len(grid.panels)
    across = min(n, max(1, 7 // n_x))
    down = math.ceil(n / across)
    with page_style():
        size = (across * (n_x * 0.95 + 0.35) + 0.9, down * (n_y * 0.62 + 0.75))
        figure = Figure(figsize=size, layout="constrained")
        all_axes = figure.subplots(down, across, squeeze=False).ravel()
        for axes, panel in zip(all_axes, grid.panels, strict=False):
            _heat_panel(axes, panel, grid, study, Normalize(-reach, reach))
        for index, axes in enumerate(all_axes[:n]):
            if index % across == 0 and grid.y:
                axes.set_ylabel(grid.y_name)
            axes.set_xlabel(grid.x_name)
        for axes in all_axes[n:]:
            axes.set_visible(False)
        alt = f"Grid: {_what(study)} by {grid.x_name} and {grid.y_name}."
        return inline(figure, name="heatmap", alt=alt)


def _heat_panel(axes: Axes, panel: Panel, grid: Layout, study: Study, norm: Normalize) -> None:
    axes.set_title(panel.title)
    axes.set_xlim(-0.5, len(grid.x_labels) - 0.5)
    axes.set_ylim(len(grid.y_labels) - 0.5, -0.5)
    axes.set_xticks(range(len(grid.x_labels)), grid.x_labels)
    axes.set_yticks(range(len(grid.y_labels)), grid.y_labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, row in enumerate(panel.cells):
        for x, trial_id in enumerate(row):
            if trial_id is not None:
                contrast = study.contrast(trial_id, control=study.control, split="dev")
                _heat_cell(axes, x, y, contrast, study, norm)
                if trial_id == study.selected:
                    axes.add_patch(
                        Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=2)
                    )


def _heat_cell(axes: Axes, x: int, y: int, contrast: Contrast | None, study: Study, norm: Normalize) -> None:
    box: dict[str, Any] = {"xy": (x - 0.47, y - 0.47), "width": 0.94, "height": 0.94}
    if contrast is None or contrast.difference is None:
        axes.add_patch(Rectangle(**box, facecolor="none", edgecolor=RULE, hatch="////", linewidth=0.8))
        axes.text(x, y, "no result", ha="center", va="center", color=MUTED, fontsize=8)
        return
    red, green, blue, _ = colormaps[DIVERGING](norm(contrast.difference))
    colour = to_hex((red, green, blue))
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
    ink = "#ffffff" if dark else "#1a1a1a"
    axes.add_patch(Rectangle(**box, facecolor=colour, edgecolor=RULE, linewidth=0.8))
    value = signed(contrast.difference, study.decimals[study.primary])
    axes.text(
        x,
        y - 0.10,
        value,
        ha="center",
        va="center",
        color=ink,
        fontweight="bold" if contrast.shown else "normal",
    )
    axes.text(x, y + 0.24, f"n = {contrast.n_prompts}", ha="center", va="center", color=ink, fontsize=7)


def dose_response(study: Study) -> Markup | None:
    """Dev contrast against training steps, a line per other setting.

    None below three step counts, and where it would have more than 24 panels.
    """
    trials = study.results.trials
    if STEPS not in study.axes or trials[STEPS].nunique() < 3 or study.search != "grid":
        return None
    others = [axis for axis in study.axes if axis != STEPS]
    lines = [axis for axis in others if is_numeric(study, axis)][:1] or others[:1]
    panels = [axis for axis in others if axis not in lines]
    if lines and trials[lines[0]].nunique(dropna=False) > MOST_LINES:
        lines, panels = [], others  # small multiples: no eye follows so many lines
    groups = list(trials.groupby(panels, sort=False, dropna=False)) if panels else [((), trials)]
    if len(groups) > MOST_PANELS:
        return None
    many = not lines and len(groups) > MOST_LINES
    across = min(len(groups), 4 if many else 2)
    down = math.ceil(len(groups) / across)
    with page_style():
        size = (2.1 * across, 1.7 * down) if many else (7.2 if across > 1 else 4.6, 2.7 * down)
        figure = Figure(figsize=size, layout="constrained")
        all_axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (key, group) in zip(all_axes, groups, strict=False):
            axes.set_title(
                " · ".join(axis_value(axis, known(value)) for axis, value in zip(panels, key, strict=True))
            )
            _dose_panel(axes, study, group, lines)
        for axes in all_axes[len(groups) :]:
            axes.set_visible(False)
        all_axes[0].set_ylabel(f"difference from {study.control}")
        handles, labels = all_axes[0].get_legend_handles_labels()
        if lines:
            figure.legend(handles, labels, title=axis_name(lines[0]), loc="outside right upper")
        alt = f"Dose–response: {_what(study)} against training steps."
        return inline(figure, name="dose", alt=alt)


def _dose_panel(axes: Axes, study: Study, trials: pd.DataFrame, lines: Sequence[str]) -> None:
    groups = list(trials.groupby(lines[0], dropna=False)) if lines else [(None, trials)]
    steps = np.sort(study.results.trials[STEPS].unique().astype(float))
    nudge = 0.012 * (steps[-1] - steps[0])  # intervals of different lines must not hide each other
    axes.axhline(0, color=MUTED, linewidth=0.9, zorder=0)
    for index, (value, group) in enumerate(groups):
        found = [
            (row[STEPS] + nudge * (index - (len(groups) - 1) / 2), c)
            for _, row in group.sort_values(STEPS).iterrows()
            if (c := study.contrast(row["trial_id"], control=study.control, split="dev"))
            and c.difference is not None
        ]
        x = [at for at, _ in found]
        y = np.array([c.difference for _, c in found], dtype=float)
        style = look(index)
        axes.plot(
            x,
            y,
            markersize=4.5,
            linewidth=1.3,
            color=style["color"],
            marker=style["marker"],
            label=axis_value("", known(value)),
        )
        for at, c in found:
            if c.low is not None and c.high is not None:
                axes.plot([at, at], [c.low, c.high], color=style["color"], linewidth=1, alpha=0.6)
    axes.set_xticks(steps, [f"{s:g}" for s in steps])
    axes.set_xlabel("training steps")
