"""What became of a population: a figure of its members over the steps, and who went on from whom."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from harness.report.study import Study
from harness.report.svg import BLUE, MUTED, ORANGE, inline, page_style
from harness.report.wording import MISSING, axis_name, metric_name
from harness.spec.fingerprint import fingerprint
from harness.spec.points import trial_points
from harness.spec.population import ancestry, changing
from harness.spec.scheduler import Member, PopulationScheduler
from harness.spec.sweep import SweepSpec

WIDE = 20  # the highest of an axis over the lowest, from which its scale is logarithmic


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One member that was replaced at a step. Values are as people read them."""

    step: int
    member: int
    value: str
    parent: int
    parent_value: str
    changes: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Population:
    """A population's section of the page."""

    members: int
    every: int
    compared: str
    figure: Markup
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True, kw_only=True)
class _Lives:
    """What members have been, and how a figure shows it."""

    scheduler: PopulationScheduler
    chosen: int | None  # the selected trial's member

    @property
    def generations(self) -> tuple[tuple[Member, ...], ...]:
        return self.scheduler.generations

    @cached_property
    def kept(self) -> set[tuple[int, int]]:
        """(generation, member) of all that the last members have been."""
        return {at for number in range(len(self.generations[-1])) for at in self.path(number)}

    def path(self, number: int) -> list[tuple[int, int]]:
        """(generation, member) of what a last member has been."""
        return list(enumerate(ancestry(self.generations, number)))

    def style(self, generation: int, member: int) -> dict[str, Any]:
        """The selected one's past stands out; what nobody went on from is faint."""
        if self.chosen is not None and (generation, member) in self.path(self.chosen):
            return {"color": BLUE, "linewidth": 2.4, "alpha": 1.0, "zorder": 4}
        if (generation, member) in self.kept:
            return {"color": MUTED, "linewidth": 1.2, "alpha": 0.9, "zorder": 3}
        return {"color": ORANGE, "linewidth": 1.0, "alpha": 0.75, "zorder": 2, "linestyle": (0, (3, 2))}


def population(study: Study) -> Population | None:
    """The section; null where the sweep is no population, or nobody was replaced so far."""
    if study.scheduler != "population":
        return None
    scheduler = PopulationScheduler.model_validate(study.sweep["scheduler"])
    if len(scheduler.generations) < 2:
        return None
    lives = _Lives(scheduler=scheduler, chosen=_chosen(study))
    compared = _compared(study)
    return Population(
        members=len(scheduler.generations[0]),
        every=scheduler.every,
        compared=compared,
        figure=_figure(study, lives, compared),
        exchanges=tuple(_exchanges(scheduler)),
    )


def _chosen(study: Study) -> int | None:
    """The selected trial's member: two of them may be one trial, the first then."""
    content = {name: value for name, value in study.sweep.items() if name in SweepSpec.model_fields}
    specs = [spec for _, spec in trial_points(SweepSpec.model_validate(content))]
    trials = [fingerprint("trial", spec=spec) for spec in specs]
    return trials.index(study.selected) if study.selected in trials else None


def _compared(study: Study) -> str:
    objective = study.sweep["scheduler"]["objective"]
    if objective["kind"] == "validation_loss":
        return "held-out loss"
    metric, control = objective["metric"] or study.primary, objective["control"] or study.control
    return f"{metric_name(metric)} − {control}"


def _figure(study: Study, lives: _Lives, compared: str) -> Markup:
    axes_shown = [name for name in changing(study.sweep["axes"]) if _numbers(lives, name)]
    last = lives.scheduler.every * len(lives.generations)
    with page_style():
        figure = Figure(figsize=(7.2, 2.2 * (1 + len(axes_shown))), layout="constrained")
        first, *others = figure.subplots(1 + len(axes_shown), 1, sharex=True, squeeze=False).ravel()
        _values(first, lives)
        first.set_ylabel(compared)
        for axes, name in zip(others, axes_shown, strict=True):
            _settings(axes, lives, name)
            axes.set_ylabel(axis_name(name))
        bottom = others[-1] if others else first
        bottom.set_xlabel("training steps")
        bottom.set_xticks(range(0, last + 1, lives.scheduler.every * math.ceil(len(lives.generations) / 10)))
        figure.legend(handles=_legend(lives), loc="outside upper center", ncols=3)
        return inline(
            figure, name="population", alt=f"Values of the members of the population, and {compared}."
        )


def _numbers(lives: _Lives, name: str) -> list[float]:
    points = (member.point.get(name) for generation in lives.generations for member in generation)
    return [float(value) for value in points if isinstance(value, int | float)]


def _values(axes: Axes, lives: _Lives) -> None:
    """What each had come to at the end of each generation, joined to what it went on from."""
    every = lives.scheduler.every
    axes.axhline(0, color=MUTED, linewidth=0.6, zorder=0)
    for number, generation in enumerate(lives.generations):
        for place, member in enumerate(generation):
            if member.value is None:
                continue
            style, x = lives.style(number, place), every * (number + 1)
            axes.plot([x], [member.value], marker="o", markersize=3.5, **{**style, "linestyle": "none"})
            before = None if number == 0 else lives.generations[number - 1][_before(member, place)].value
            if before is not None:
                axes.plot([x - every, x], [before, member.value], **style)


def _settings(axes: Axes, lives: _Lives, name: str) -> None:
    """The values of one axis: level over a generation, and a thin line from whom one went on from."""
    every, numbers = lives.scheduler.every, _numbers(lives, name)
    if min(numbers) > 0 and max(numbers) / min(numbers) >= WIDE:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    for number, generation in enumerate(lives.generations):
        for place, member in enumerate(generation):
            value, style = member.point.get(name), lives.style(number, place)
            if not isinstance(value, int | float):
                continue
            axes.plot([every * number, every * (number + 1)], [value, value], **style)
            before = (
                None if number == 0 else lives.generations[number - 1][_before(member, place)].point.get(name)
            )
            if isinstance(before, int | float) and before != value:
                axes.plot([every * number] * 2, [before, value], **{**style, "linewidth": 0.8})


def _before(member: Member, place: int) -> int:
    return place if member.parent is None else member.parent


def _legend(lives: _Lives) -> list[Line2D]:
    """Of what there is to see."""
    kinds = {
        "the selected trial": next(iter(lives.path(lives.chosen)), None)
        if lives.chosen is not None
        else None,
        "the other members": next((at for at in lives.kept if lives.style(*at)["color"] == MUTED), None),
        "replaced": next(
            (
                (number, place)
                for number, generation in enumerate(lives.generations)
                for place in range(len(generation))
                if (number, place) not in lives.kept
            ),
            None,
        ),
    }
    return [Line2D([], [], label=label, **lives.style(*at)) for label, at in kinds.items() if at is not None]


def _exchanges(scheduler: PopulationScheduler) -> Iterator[Exchange]:
    for number, generation in enumerate(scheduler.generations[1:], start=1):
        before = scheduler.generations[number - 1]
        for place, member in enumerate(generation):
            if member.parent is None:
                continue
            changes = [
                f"{axis_name(name)} {_text(before[member.parent].point[name])} → {_text(member.point[name])}"
                for name in changing(member.point)
                if before[member.parent].point[name] != member.point[name]
            ]
            yield Exchange(
                step=scheduler.every * number,
                member=place,
                value=_text(before[place].value),
                parent=member.parent,
                parent_value=_text(before[member.parent].value),
                changes=", ".join(changes) or "the same values",
                reason=before[place].reason,
            )


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.3g}".replace("-", "−") if isinstance(value, float) else str(value)
