"""Figures of curves: the effect over an arm's parameter."""

from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.reporting.report.figures.svg import (
    BLUE,
    GREEN,
    MARKERS,
    MUTED,
    ORANGE,
    PALETTE,
    inline,
    page_style,
)
from harness.reporting.report.layout import Family, Point, families, matched_control, param_name
from harness.results.contrast import Contrast
from harness.results.format import metric_name
from harness.results.study import Study

Found = list[tuple[float, float, Contrast]]  # x, difference


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A family's figure."""

    family: Family
    figure: Markup


def family_curves(study: Study) -> list[Curve]:
    """The effect of each family of arms over its parameter. Empty where no trial was selected."""
    if study.selected is None:
        return []
    drawn = [(family, _family_figure(study, family)) for family in families(study)]
    return [Curve(family=family, figure=figure) for family, figure in drawn if figure is not None]


def _family_figure(study: Study, family: Family) -> Markup | None:
    if not _found(study, family.points, study.selected, "dev"):
        return None
    with page_style():
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=MUTED, linewidth=0.9, zorder=0)
        if len(family.lines) > 1:
            _several_lines(axes, study, family)
        else:
            _one_line(axes, study, family)
        places = sorted({point.x for point in family.points})
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.set_xlabel(param_name(family.axis))
        axes.set_ylabel(f"{metric_name(study.primary)} − {study.control}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        alt = f"{family.name}: difference in {metric_name(study.primary)} over {param_name(family.axis)}."
        return inline(figure, name=f"curve-{family.name}", alt=alt)


def _one_line(axes: Axes, study: Study, family: Family) -> None:
    """The selected trial on dev and on test with intervals; every other trial as a thin line."""
    for place, trial_id in enumerate(study.labels):
        if trial_id != study.selected and (found := _found(study, family.points, trial_id, "dev")):
            label = "other trials, dev" if place == _first_other(study) else None
            x, y, _ = zip(*found, strict=True)
            axes.plot(x, y, color=MUTED, linewidth=0.8, alpha=0.55, label=label)
    nudge = _nudge(family)
    _line(axes, _found(study, family.points, study.selected, "dev"), BLUE, "o", "selected trial, dev")
    test = _found(study, family.points, study.selected, "test")
    _line(axes, test, ORANGE, "D", "selected trial, test", shift=nudge)
    label = f"same, against the\ncontrol of equal {param_name(family.axis)}"
    _line(axes, _against_matched(study, family), GREEN, "s", label, shift=-nudge)


def _several_lines(axes: Axes, study: Study, family: Family) -> None:
    """The selected trial on dev, a line for each of the other values."""
    for place, line in enumerate(family.lines):
        points = tuple(point for point in family.points if point.line == line)
        shift = _nudge(family) * (place - (len(family.lines) - 1) / 2)
        colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
        found = _found(study, points, study.selected, "dev")
        _line(axes, found, colour, marker, " · ".join(line), shift=shift)


def _first_other(study: Study) -> int:
    return next(place for place, trial_id in enumerate(study.labels) if trial_id != study.selected)


def _nudge(family: Family) -> float:
    """Intervals of different lines must not hide each other."""
    return 0.012 * (family.points[-1].x - family.points[0].x)


def _found(study: Study, points: tuple[Point, ...], trial_id: str | None, split: str) -> Found:
    contrasts = [
        (point.x, study.contrast(trial_id, arm=point.arm, control=study.control, split=split))
        for point in points
    ]
    return [(x, c.difference, c) for x, c in contrasts if c is not None and c.difference is not None]


def _against_matched(study: Study, family: Family) -> Found:
    """Each point against the control of its own values, on the split of the verdict."""
    found: Found = []
    for point in family.points:
        control = matched_control(study, point.arm)
        if control is not None and control != study.control:
            c = study.contrast(study.selected, arm=point.arm, control=control, split=study.split)
            found += [(point.x, c.difference, c)] if c is not None and c.difference is not None else []
    return found


def _line(axes: Axes, found: Found, colour: str, marker: str, label: str, *, shift: float = 0.0) -> None:
    if not found:
        return
    x = [place + shift for place, _, _ in found]
    y = [difference for _, difference, _ in found]
    axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.5, label=label)
    for at, (_, _, c) in zip(x, found, strict=True):
        if c.low is not None and c.high is not None:
            axes.plot([at, at], [c.low, c.high], color=colour, linewidth=1.2, alpha=0.7)
