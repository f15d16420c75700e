"""Axes: every name exists, every value is allowed, and no two trials are the same.

An axis that varies nothing is the worst fault a sweep can have, so all of it is checked before any work.
"""

import functools
from collections.abc import Iterator, Mapping
from graphlib import CycleError
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.config.loading.messages import Fault, faults, members_of, show, truths, unknown
from harness.config.plan.axes import (
    TRIAL_SECTIONS,
    Point,
    PointsAndTrials,
    applied,
    apply_axes,
    base_trial,
    corners,
    look_up,
    order_of,
    param_label,
    trial_points,
)
from harness.config.schema.adapter import AdapterConfig
from harness.config.schema.base import NOT_HASHED, fingerprint
from harness.config.schema.model import ModelConfig
from harness.config.schema.recipe import RecipeConfig
from harness.config.schema.search import (
    Axis,
    ConditionalValues,
    GridSearch,
    ValueRange,
    conditions,
    values_of,
    with_values,
)
from harness.config.schema.sweep import SweepConfig, TrialConfig
from harness.errors import ConfigError

WHOLE_SECTIONS: dict[str, TypeAdapter[Any]] = {  # those that have kinds to choose between
    "model": TypeAdapter(ModelConfig),
    "recipe": TypeAdapter(RecipeConfig),
    "adapter": TypeAdapter(AdapterConfig),
}
_PLAIN = TypeAdapter[Any](Any)


def axis_names() -> tuple[str, ...]:
    """Every name an axis may have: a section with kinds, or a field that bears identity, however deep."""
    names = set[str](WHOLE_SECTIONS)
    for section in TRIAL_SECTIONS:
        names |= set(_fields_below(section, TrialConfig.model_fields[section].annotation))
    return tuple(sorted(names))


def _fields_below(prefix: str, annotation: Any) -> Iterator[str]:
    for kind in members_of(annotation):
        for name, field in kind.model_fields.items():
            if name != "digest" and NOT_HASHED not in field.metadata:
                yield f"{prefix}.{name}"
                yield from _fields_below(f"{prefix}.{name}", field.annotation)


def check_axes_as_written(axes: Any) -> None:
    """Raise ConfigError for each key that is not allowed in an axis given as a mapping."""
    lines = []
    for name, axis in axes.items() if isinstance(axes, dict) else ():
        if not isinstance(axis, dict):
            continue
        kind = ValueRange if axis.keys() & {"low", "high"} else ConditionalValues
        try:
            kind.model_validate(axis)
        except ValidationError as error:
            for fault in faults(error, kind):
                lines.append(
                    fault.line(f"axes.{name}.{fault.name}") if fault.name else f"axes.{name}: {fault.text}"
                )
    raise_if(iter(lines))


def with_checked_axes(sweep: SweepConfig) -> SweepConfig:
    """The sweep with sections that an axis gives whole in full, after the checks that need no trial.

    Raises:
        ConfigError: one line per axis or condition that is not allowed.
    """
    raise_if(unknown(name, axis_names(), prefix="axes.") for name in sweep.axes if name not in axis_names())
    raise_if(_overwritten(sweep.axes))
    sweep = sweep.model_copy(
        update={"axes": {name: _filled(name, axis) for name, axis in sweep.axes.items()}}
    )
    raise_if(_bad_conditions(sweep))
    raise_if(_ranges_without_end(sweep))
    return sweep


def with_checked_values(sweep: SweepConfig) -> tuple[SweepConfig, PointsAndTrials]:
    """The sweep with each axis value as its specification holds it (`8.0` for a rank becomes `8`).

    With it the trials that show so: all of a grid, else the corners of the axes.

    Raises:
        ConfigError: one line per value that is not allowed.
    """
    base, order = base_trial(sweep), order_of(sweep.axes)
    values = {name: list(values_of(axis)) for name, axis in sweep.axes.items()}
    outermost = [name for name in values if not any(other.startswith(f"{name}.") for other in values)]
    trials: dict[tuple[tuple[str, int], ...], tuple[Point, TrialConfig]] = {}
    found: list[str] = []
    for indices in corners(sweep):
        chosen = {name: values_of(sweep.axes[name])[index] for name, index in indices.items()}
        point = applied(sweep.axes, order, base, chosen)
        key = tuple((name, indices[name]) for name in point)
        if key in trials:  # it differs in axes alone that are not applied
            continue
        raw = apply_axes(base, point)
        try:
            config = TrialConfig.model_validate(raw)
        except ValidationError as error:
            at = {name: _place(name, sweep.axes[name], indices[name]) for name in point}
            found += [_line(fault, at, raw) for fault in faults(error, TrialConfig)]
            continue
        for name in point.keys() & outermost:
            held = functools.reduce(getattr, name.split("."), config)
            plain = _PLAIN.dump_python(held, mode="json")
            found += truths(values[name][indices[name]], plain, _place(name, sweep.axes[name], indices[name]))
            values[name][indices[name]] = plain
        trials[key] = ({name: values[name][indices[name]] for name in point}, config)
    raise_if(iter(found))
    axes = {name: with_values(axis, values[name]) for name, axis in sweep.axes.items()}
    raise_if(_doubled(axes))
    return sweep.model_copy(update={"axes": axes}), tuple(trials.values())


def validated_trials(sweep: SweepConfig, known: PointsAndTrials) -> PointsAndTrials:
    """Every point of the sweep with its trial; those that are known are not validated again.

    Raises:
        ConfigError: fields that do not go together, which the corners need not show where there are more.
    """
    try:
        return tuple(trial_points(sweep, known))
    except ValidationError as error:
        lines = [f"axes: a point is not allowed: {f.line(f.name)}" for f in faults(error, TrialConfig)]
    raise ConfigError("\n".join(dict.fromkeys(lines)))


def check_distinct(sweep: SweepConfig, trials: PointsAndTrials) -> Iterator[str]:
    """No two points make the same trial, as two names for one recipe would."""
    seen: dict[str, dict[str, Any]] = {}
    for point, config in trials:
        labels = {name: param_label(value) for name, value in point.items()}
        first = seen.setdefault(fingerprint("trial", config=config), labels)
        if first is not labels:
            yield f"axes: {show(first)} and {show(labels)} are the same trial"
            return


def raise_if(found: Iterator[str]) -> None:
    """Raise ConfigError with each line once, if there is one."""
    lines = list(dict.fromkeys(found))
    if lines:
        raise ConfigError("\n".join(lines))


def _overwritten(axes: Mapping[str, Axis]) -> Iterator[str]:
    """Sections given whole must be mappings, and must not set what another axis sets again."""
    for section, axis in axes.items():
        inner = {name.removeprefix(f"{section}.") for name in axes if name.startswith(f"{section}.")}
        for index, value in enumerate(values_of(axis)):
            if not isinstance(value, dict):
                if section in WHOLE_SECTIONS:
                    given = f"{_place(section, axis, index)}: {show(value)}"
                    yield f"{given} is not allowed: must be a mapping, as {{key: value}}"
                continue
            for name in sorted(inner & value.keys()):
                yield f"{_place(section, axis, index)}.{name} is overwritten by axes.{section}.{name}"


def _place(name: str, axis: Axis, index: int) -> str:
    """Where one of `values_of(axis)` stands in the file."""
    match axis:
        case ValueRange():
            return f"axes.{name}.{('low', 'high')[index]}"
        case ConditionalValues():
            return f"axes.{name}.values[{index}]"
        case _:
            return f"axes.{name}[{index}]"


def _filled(name: str, axis: Axis) -> Axis:
    """Sections given whole with all their fields, which a condition may look at."""
    if name not in WHOLE_SECTIONS:
        return axis
    values = []
    for value in values_of(axis):
        try:
            filled = WHOLE_SECTIONS[name].validate_python(value).model_dump(mode="json")
        except ValidationError:  # told of the trial that it makes
            values.append(value)
        else:
            raise_if(truths(value, filled, f"axes.{name}"))
            values.append(filled)
    return with_values(axis, values)


def _bad_conditions(sweep: SweepConfig) -> Iterator[str]:
    """A condition names a field, can hold, and does not wait for itself."""
    names = {*axis_names(), "recipe.name"} - WHOLE_SECTIONS.keys()
    for name, axis in sweep.axes.items():
        for field, allowed in conditions(axis).items():
            if field not in names:
                yield unknown(field, names, prefix=f"axes.{name}.when.")
                continue
            taken = _values_taken(sweep, field)
            if not any(value in taken for value in allowed):
                yield f"axes.{name}.when.{field}: never holds; it takes {', '.join(map(show, taken))}"
    try:
        order_of(sweep.axes)
    except CycleError as error:
        yield f"axes: conditions wait for each other: {' → '.join(error.args[1])}"


def _values_taken(sweep: SweepConfig, field: str) -> list[Any]:
    """The values that a field may have in this sweep's trials."""
    taken: list[Any] = []
    deciding = {name: axis for name, axis in sweep.axes.items() if f"{field}.".startswith(f"{name}.")}
    if all(conditions(axis) for axis in deciding.values()):  # else one of them always takes its place
        taken.append(look_up(base_trial(sweep), field))
    for name, axis in deciding.items():
        inner = field.removeprefix(name).removeprefix(".")
        taken += [look_up(value, inner) if inner else value for value in values_of(axis)]
    return [value for place, value in enumerate(taken) if value not in taken[:place]]


def _ranges_without_end(sweep: SweepConfig) -> Iterator[str]:
    if not isinstance(sweep.search, GridSearch):
        return
    for name, axis in sweep.axes.items():
        if isinstance(axis, ValueRange):
            yield (
                f"axes.{name}: a grid takes every value, and a range is not a list; "
                "give the values, or search: {kind: random, trials: N}"
            )


def _line(fault: Fault, at: Mapping[str, str], raw: Mapping[str, Any]) -> str:
    """A fault of one trial, told of the axis value that brought it in: `at` says where each stands."""
    section = fault.name.partition(".")[0]
    if fault.is_unknown and fault.name in at:
        kind = raw[section].get("kind", section)
        return f"axes.{fault.name}: {kind} has no such key; allowed: {', '.join(sorted(fault.fields))}"
    for name in sorted(at, key=len, reverse=True):
        if fault.name == name or fault.name.startswith((f"{name}.", f"{name}[")):
            return fault.line(at[name] + fault.name.removeprefix(name))
    below = [at[name] for name in at if name.startswith(f"{section}.")]
    return f"{' with '.join(below or at.values())}: {fault.line(fault.name)}"


def _doubled(axes: Mapping[str, Axis]) -> Iterator[str]:
    for name, axis in axes.items():
        if isinstance(axis, ValueRange):
            continue
        labels = [show(param_label(value) if name in WHOLE_SECTIONS else value) for value in values_of(axis)]
        for label in sorted({label for label in labels if labels.count(label) > 1}):
            if name == "recipe":
                yield f"axes.recipe: two values are called {label}; give each a name of its own (name: ...)"
            else:
                yield f"axes.{name}: {label} is given twice"
