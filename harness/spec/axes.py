"""Axes: every name exists, every value is allowed, and no two trials are the same.

An axis that varies nothing is the worst fault a sweep can have, so all of it is checked before any work.
"""

import functools
import itertools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from harness.errors import SpecError
from harness.spec.base import HOW
from harness.spec.expand import TRIAL_SECTIONS, apply_axes, base_trial, param_label, trial_points
from harness.spec.fingerprint import fingerprint
from harness.spec.messages import Fault, faults, members_of, show, unknown
from harness.spec.sweep import SweepSpec
from harness.spec.trial import TrialSpec

WHOLE_SECTIONS = ("model", "recipe", "adapter")  # those that have kinds to choose between


def axis_names() -> tuple[str, ...]:
    """Every name an axis may have: a section with kinds, or a field that bears identity, however deep."""
    names = set(WHOLE_SECTIONS)
    for section in TRIAL_SECTIONS:
        names |= set(_fields_below(section, TrialSpec.model_fields[section].annotation))
    return tuple(sorted(names))


def _fields_below(prefix: str, annotation: Any) -> Iterator[str]:
    for kind in members_of(annotation):
        for name, field in kind.model_fields.items():
            if name != "digest" and HOW not in field.metadata:
                yield f"{prefix}.{name}"
                yield from _fields_below(f"{prefix}.{name}", field.annotation)


def checked_axes(sweep: SweepSpec) -> dict[str, list[Any]]:
    """The axes with each value as its specification holds it (`8.0` for a rank becomes `8`).

    Raises:
        SpecError: one line per axis or value that is not allowed.
    """
    _raise_if(unknown(name, axis_names(), prefix="axes.") for name in sweep.axes if name not in axis_names())
    _raise_if(_overwritten(sweep.axes))
    axes = _validated(sweep)
    _raise_if(_doubled(axes))
    return axes


def check_distinct_trials(sweep: SweepSpec) -> None:
    """No two points of the axes make the same trial, as two names for one recipe would."""
    seen: dict[str, dict[str, Any]] = {}
    for params, spec in trial_points(sweep):
        labels = {name: param_label(value) for name, value in params.items()}
        first = seen.setdefault(fingerprint("trial", spec=spec), labels)
        if first is not labels:
            raise SpecError(f"axes: {show(first)} and {show(labels)} are the same trial")


def _raise_if(found: Iterator[str]) -> None:
    lines = list(dict.fromkeys(found))
    if lines:
        raise SpecError("\n".join(lines))


def _overwritten(axes: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    """Sections given whole must be mappings, and must not set what another axis sets again."""
    for section, values in axes.items():
        inner = {name.removeprefix(f"{section}.") for name in axes if name.startswith(f"{section}.")}
        for index, value in enumerate(values):
            if not isinstance(value, dict):
                if section in WHOLE_SECTIONS:
                    given = f"axes.{section}[{index}]: {show(value)}"
                    yield f"{given} is not allowed: must be a mapping, as {{key: value}}"
                continue
            for name in sorted(inner & value.keys()):
                yield f"axes.{section}[{index}].{name} is overwritten by axes.{section}.{name}"


def _validated(sweep: SweepSpec) -> dict[str, list[Any]]:
    base = base_trial(sweep)
    axes = {name: list(values) for name, values in sweep.axes.items()}
    found: list[str] = []
    for indices in itertools.product(*(range(len(values)) for values in sweep.axes.values())):
        chosen = dict(zip(sweep.axes, indices, strict=True))
        raw = apply_axes(base, {name: sweep.axes[name][index] for name, index in chosen.items()})
        try:
            trial = TrialSpec.model_validate(raw).model_dump(mode="json")
        except ValidationError as error:
            found += [_line(fault, chosen, raw) for fault in faults(error, TrialSpec)]
            continue
        for name, index in chosen.items():
            if not any(other.startswith(f"{name}.") for other in axes):
                axes[name][index] = functools.reduce(operator.getitem, name.split("."), trial)
    _raise_if(iter(found))
    return axes


def _line(fault: Fault, chosen: Mapping[str, int], raw: Mapping[str, Any]) -> str:
    """A fault of one trial, told of the axis value that brought it in."""
    section = fault.name.partition(".")[0]
    at = {name: f"axes.{name}[{index}]" for name, index in chosen.items()}
    if fault.is_unknown and fault.name in at:
        kind = raw[section].get("kind", section)
        return f"axes.{fault.name}: {kind} has no such key; allowed: {', '.join(sorted(fault.fields))}"
    for name in sorted(at, key=len, reverse=True):
        if fault.name == name or fault.name.startswith((f"{name}.", f"{name}[")):
            return fault.line(at[name] + fault.name.removeprefix(name))
    below = [at[name] for name in at if name.startswith(f"{section}.")]
    return f"{' with '.join(below or at.values())}: {fault.line(fault.name)}"


def _doubled(axes: Mapping[str, list[Any]]) -> Iterator[str]:
    for name, values in axes.items():
        labels = [show(param_label(value) if name in WHOLE_SECTIONS else value) for value in values]
        for label in sorted({label for label in labels if labels.count(label) > 1}):
            if name == "recipe":
                yield f"axes.recipe: two values are called {label}; give each a name of its own (name: ...)"
            else:
                yield f"axes.{name}: {label} is given twice"
