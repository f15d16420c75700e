"""Axes: every name exists, every value is allowed, and no two trials are the same.

An axis that varies nothing is the worst fault a sweep can have, so all of it is checked before any work.
"""

import functools
import operator
from collections.abc import Iterator, Mapping
from graphlib import CycleError
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.config.loading.messages import Fault, faults, members_of, show, unknown
from harness.config.plan.axes import (
    TRIAL_SECTIONS,
    applied,
    apply_axes,
    base_trial,
    corners,
    look_up,
    order_of,
    require_enough_points,
    trial_points,
)
from harness.config.plan.plan import param_label
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
)
from harness.config.schema.sweep import SweepConfig, TrialConfig
from harness.errors import ConfigError

WHOLE_SECTIONS: dict[str, TypeAdapter[Any]] = {  # those that have kinds to choose between
    "model": TypeAdapter(ModelConfig),
    "recipe": TypeAdapter(RecipeConfig),
    "adapter": TypeAdapter(AdapterConfig),
}


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
    _raise_if(iter(lines))


def checked_axes(sweep: SweepConfig) -> dict[str, Any]:
    """The axes with each value as its specification holds it (`8.0` for a rank becomes `8`).

    Raises:
        ConfigError: one line per axis, condition or value that is not allowed.
    """
    _raise_if(unknown(name, axis_names(), prefix="axes.") for name in sweep.axes if name not in axis_names())
    _raise_if(_overwritten(sweep.axes))
    sweep = sweep.model_copy(
        update={"axes": {name: _filled(name, axis) for name, axis in sweep.axes.items()}}
    )
    _raise_if(_bad_conditions(sweep))
    _raise_if(_ranges_without_end(sweep))
    axes = _validated(sweep)
    _raise_if(_doubled(axes))
    return axes


def check_trials(sweep: SweepConfig) -> None:
    """Every point makes a trial, and no two the same one, as two names for one recipe would."""
    require_enough_points(sweep)
    seen: dict[str, dict[str, Any]] = {}
    try:
        for point, config in trial_points(sweep):
            labels = {name: param_label(value) for name, value in point.items()}
            first = seen.setdefault(fingerprint("trial", config=config), labels)
            if first is not labels:
                raise ConfigError(f"axes: {show(first)} and {show(labels)} are the same trial")
    except ValidationError as error:  # of fields that do not go together, where not all points are tried
        _raise_if(
            f"axes: a point is not allowed: {fault.line(fault.name)}" for fault in faults(error, TrialConfig)
        )


def _raise_if(found: Iterator[str]) -> None:
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
            values.append(WHOLE_SECTIONS[name].validate_python(value).model_dump(mode="json"))
        except ValidationError:  # told of the trial that it makes
            values.append(value)
    return _with_values(axis, values)


def _with_values(axis: Axis, values: list[Any]) -> Axis:
    match axis:
        case ValueRange():
            return axis.model_copy(update={"low": values[0], "high": values[1]})
        case ConditionalValues():
            return axis.model_copy(update={"values": tuple(values)})
        case _:
            return tuple(values)


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


def _validated(sweep: SweepConfig) -> dict[str, Any]:
    base, order = base_trial(sweep), order_of(sweep.axes)
    values = {name: list(values_of(axis)) for name, axis in sweep.axes.items()}
    found: list[str] = []
    for indices in corners(sweep):
        chosen = {name: values_of(sweep.axes[name])[index] for name, index in indices.items()}
        point = applied(sweep.axes, order, base, chosen)
        at = {name: _place(name, sweep.axes[name], indices[name]) for name in point}
        raw = apply_axes(base, point)
        try:
            trial = TrialConfig.model_validate(raw).model_dump(mode="json")
        except ValidationError as error:
            found += [_line(fault, at, raw) for fault in faults(error, TrialConfig)]
            continue
        for name in point:
            if not any(other.startswith(f"{name}.") for other in sweep.axes):
                values[name][indices[name]] = functools.reduce(operator.getitem, name.split("."), trial)
    _raise_if(iter(found))
    return {name: _with_values(axis, values[name]) for name, axis in sweep.axes.items()}


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
