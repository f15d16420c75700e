"""The points of a sweep's axes that become trials: all of them, or as many as a search is to try.

A point holds the axes that are applied. An axis whose `when` does not hold is not among them.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import PurePath
from random import Random
from typing import Any

from harness.config.schema.search import (
    Axis,
    GridSearch,
    OptunaSearch,
    RandomSearch,
    ValueRange,
    conditions,
    values_of,
)
from harness.config.schema.sweep import SweepConfig, TrialConfig
from harness.errors import ConfigError

TRIAL_SECTIONS = ("model", "recipe", "adapter", "training")
MOST_POINTS = 4000  # about eight seconds of a processor
MOST_IMAGES = 10_000_000
MISSES = 100  # times the points found so far; after so many old ones in a row there are hardly new ones

Point = dict[str, Any]
PointsAndTrials = Sequence[tuple[Point, TrialConfig]]


def trial_points(sweep: SweepConfig, known: PointsAndTrials = ()) -> Iterator[tuple[Point, TrialConfig]]:
    """Each point and the trial it makes. In a grid the last axis is the fastest.

    `known` are points of the same sweep that were validated before; only the others are validated.
    Axes are applied to the raw mapping, because pydantic does not validate updates of a finished model.
    Raises pydantic.ValidationError where a value is not allowed.
    """
    base = base_trial(sweep)
    validated = {key_of(point): config for point, config in known}
    for point in points(sweep, base):
        yield point, validated.get(key_of(point)) or TrialConfig.model_validate(apply_axes(base, point))


def points(sweep: SweepConfig, base: Mapping[str, Any]) -> Iterator[Point]:
    """The points of a sweep's search, no two alike."""
    order = order_of(sweep.axes)
    match sweep.search:
        case GridSearch():
            seen = set()
            for values in itertools.product(*map(values_of, sweep.axes.values())):
                chosen = dict(zip(sweep.axes, values, strict=True))
                point = applied(sweep.axes, order, base, chosen)
                if key_of(point) not in seen:
                    seen.add(key_of(point))
                    yield point
        case RandomSearch(trials=trials, seed=seed):
            yield from itertools.islice(random_points(sweep.axes, base, seed=seed), trials)
        case OptunaSearch(points=asked_for):
            yield from asked_for


def require_few_enough_points(sweep: SweepConfig) -> None:
    """Raise ConfigError for more points or images than can be planned; nothing is walked through."""
    grid = math.prod(len(values_of(axis)) for axis in sweep.axes.values())
    points = grid if isinstance(sweep.search, GridSearch) else sweep.search.trials
    if points > MOST_POINTS:
        raise ConfigError(
            f"axes: {points:,} points; allowed: at most {MOST_POINTS:,}. Give fewer values, or "
            "search: {kind: random, trials: N}"
        )
    images = points * len(sweep.arms) * len(sweep.prompts) * len(sweep.seeds)
    if images > MOST_IMAGES:
        raise ConfigError(
            f"{points:,} trials × {len(sweep.arms)} arms × {len(sweep.prompts):,} prompts × "
            f"{len(sweep.seeds):,} seeds are {images:,} images; allowed: at most {MOST_IMAGES:,}"
        )


def require_enough_points(sweep: SweepConfig) -> None:
    """Raise ConfigError where a search is to try more points than there are."""
    if isinstance(sweep.search, GridSearch):
        return
    asked, base = sweep.search.trials, base_trial(sweep)
    there = sum(1 for _ in itertools.islice(random_points(sweep.axes, base, seed=sweep.search.seed), asked))
    if there < asked:
        raise ConfigError(
            f"search.trials: {asked} are asked for, and the axes have {there} points; "
            f"allowed: at most {there}, or more values"
        )


def random_points(axes: Mapping[str, Axis], base: Mapping[str, Any], *, seed: int) -> Iterator[Point]:
    """Different points as the seed has them, until there seem to be no more."""
    order = order_of(axes)
    seen: set[str] = set()
    misses = 0
    for number in itertools.count():
        # A generator for each value: another axis, or one value more of it, moves no other axis' values.
        chosen = {name: _drawn(axis, Random(f"{seed} {number} {name}")) for name, axis in axes.items()}
        point = applied(axes, order, base, chosen)
        if key_of(point) not in seen:
            misses = 0
            seen.add(key_of(point))
            yield point
        elif (misses := misses + 1) > MISSES * (1 + len(seen)):
            return


def _drawn(axis: Axis, generator: Random) -> Any:
    share = generator.random()
    if not isinstance(axis, ValueRange):
        values = values_of(axis)
        return values[int(share * len(values))]
    low, high = axis.low, axis.high
    if axis.step is not None:
        places = math.floor((high - low) / axis.step + 1e-9) + 1
        return fitted(axis, low + int(share * places) * axis.step)
    if axis.whole and not axis.log:
        return low + int(share * (high - low + 1))
    value = math.exp(math.log(low) + share * math.log(high / low)) if axis.log else low + share * (high - low)
    return fitted(axis, value)


def fitted(axis: ValueRange, value: float) -> int | float:
    """A number of the range as a trial has it: whole, or of four significant digits if it has no step."""
    if axis.whole:
        return min(max(round(value), int(axis.low)), int(axis.high))
    return min(max(float(f"{value:.{4 if axis.step is None else 12}g}"), axis.low), axis.high)


def key_of(point: Point) -> str:
    """The same for equal points."""
    return json.dumps(point, sort_keys=True)


def order_of(axes: Mapping[str, Axis]) -> list[str]:
    """The order in which axes are applied: whole sections first, and what a `when` looks at before it.

    Raises graphlib.CycleError where conditions wait for each other.
    """
    return list(TopologicalSorter({name: decided_by(name, axes) for name in axes}).static_order())


def decided_by(name: str, axes: Mapping[str, Axis]) -> list[str]:
    """The axes to be applied before this one: they set what it changes, or what its `when` looks at."""
    looked_at = [name, *conditions(axes[name])]
    return [
        other
        for other in axes
        if (other != name and any(field.startswith(f"{other}.") for field in looked_at))
        or other in conditions(axes[name])
    ]


def applied(
    axes: Mapping[str, Axis], order: list[str], base: Mapping[str, Any], chosen: Mapping[str, Any]
) -> Point:
    """Of the values chosen, those whose axis is applied: its `when` holds in the trial made so far."""
    raw, point = dict(base), {}
    for name in order:
        if holds(axes[name], raw):
            point[name] = chosen[name]
            raw = apply_axis(raw, name, chosen[name])
    return {name: point[name] for name in axes if name in point}


def holds(axis: Axis, raw: Mapping[str, Any]) -> bool:
    """True where everything that the axis' `when` names has one of its values."""
    return all(look_up(raw, name) in allowed for name, allowed in conditions(axis).items())


def corners(sweep: SweepConfig) -> Iterator[dict[str, int]]:
    """The numbers of the values that are checked together: all of a grid; else each pair of two axes' values.

    With a pair goes what the two axes' conditions ask for, so that they are applied.
    """
    places = {name: range(len(values_of(axis))) for name, axis in sweep.axes.items()}
    if isinstance(sweep.search, GridSearch):
        for indices in itertools.product(*places.values()):
            yield dict(zip(places, indices, strict=True))
        return
    for one, other in itertools.combinations_with_replacement(places, 2):
        for i, j in itertools.product(places[one], places[other]):
            chosen = {
                **dict.fromkeys(places, 0),
                **_enabling(sweep.axes, one),
                **_enabling(sweep.axes, other),
            }
            yield {**chosen, one: i, other: j}


def _enabling(axes: Mapping[str, Axis], name: str) -> dict[str, int]:
    """For each axis that decides whether this one is applied, the first value under which it is."""
    chosen: dict[str, int] = {}
    for field, allowed in conditions(axes[name]).items():
        for other in decided_by(name, axes):
            inner = field.removeprefix(other).removeprefix(".")
            if field != other and not field.startswith(f"{other}."):
                continue
            for index, value in enumerate(values_of(axes[other])):
                if (look_up(value, inner) if inner else value) in allowed:
                    chosen |= {**_enabling(axes, other), other: index}
                    break
    return chosen


NULL = "none"  # an axis value that is null, in columns; an axis that is not applied is null there


def param_label(value: Any) -> Any:
    """An axis value as it stands in a column: a section given whole is named by its `name` or its `kind`.

    A model is named by the end of its source.
    """
    match value:
        case {"kind": "sdxl", "source": str(source)}:
            return PurePath(source).name
        case dict():
            return value.get("name") or value.get("kind") or value.get("prompt")
        case list() | tuple():
            return ", ".join(map(str, value))
        case plain:
            return plain


def label_at(point: Point, axis: str) -> Any:
    """The label of an axis' value; None if the axis is not applied, `none` if its value is null."""
    if axis not in point:
        return None
    label = param_label(point[axis])
    return NULL if label is None else label


def look_up(raw: Mapping[str, Any], dotted: str) -> Any:
    """The field of that name; None if there is none, as with another kind."""
    found: Any = raw
    for step in dotted.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def apply_axis(raw: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of the raw trial mapping with one dotted name replaced. The name was checked on reading."""
    head, _, rest = dotted.partition(".")
    if not rest:
        return {**raw, head: value}
    return {**raw, head: apply_axis(raw[head] or {}, rest, value)}  # null: a section that is not used so far


def apply_axes(raw: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """The raw trial mapping with every axis applied: sections replaced whole, then names inside them."""
    for dotted in sorted(params, key=lambda dotted: dotted.count(".")):
        raw = apply_axis(raw, dotted, params[dotted])
    return raw


def base_trial(sweep: SweepConfig) -> dict[str, Any]:
    """The raw trial mapping that axes are applied to."""
    sections = {name: getattr(sweep, name) for name in TRIAL_SECTIONS}
    return {name: section and section.model_dump(mode="json") for name, section in sections.items()}
