"""Axes of an arm: one arm in the sweep's file stands for one per point; nothing is trained again."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from harness.errors import SpecError
from harness.spec.evaluation import ArmSpec
from harness.spec.messages import faults, show

Content = dict[str, Any]


def expanded_arms(arms: Sequence[Any]) -> list[Any]:
    """The raw arms, each that has `axes` replaced by one arm per point, the last axis fastest.

    Raises:
        SpecError: an axis names nothing in the arm, has no values, or a value that is not allowed there.
    """
    return [point for arm in arms for point in (_points(arm) if _has_axes(arm) else [arm])]


def _has_axes(arm: Any) -> bool:
    return isinstance(arm, dict) and "axes" in arm


def _points(arm: Content) -> list[Content]:
    name, axes = arm.get("name"), arm["axes"]
    where = f"arms.{name}.axes"
    if not isinstance(axes, dict) or not axes:
        raise SpecError(f"{where}: must be a mapping, as {{adapters.0.scale: [0.5, 1]}}")
    for dotted, values in axes.items():
        if not isinstance(values, list) or not values:
            raise SpecError(f"{where}.{dotted}: must be a list of at least 1")
    rest = {key: value for key, value in arm.items() if key != "axes"}
    return [
        _point(rest, dict(zip(axes, values, strict=True)), where)
        for values in itertools.product(*axes.values())
    ]


def _point(arm: Content, params: Content, where: str) -> Content:
    family = arm.get("name")
    if {"name", "family", "params"} & params.keys():
        raise SpecError(f"{where}: a name is not varied; allowed: negative, guidance, adapters.0.scale, …")
    labels = {dotted.rpartition(".")[2]: value for dotted, value in params.items()}
    if len(labels) < len(params):  # two adapters' scales
        labels = dict(params)
    point: Any = {**arm, "name": "-".join([str(family), *_words(labels)]), "family": family, "params": labels}
    for dotted, value in params.items():
        point = _with(point, dotted.split("."), value, f"{where}.{dotted}")
    try:
        ArmSpec.model_validate(point)
    except ValidationError as error:
        lines = [fault.line(fault.name) for fault in faults(error, ArmSpec)]
        raise SpecError("\n".join(f"{where}: {show(params)}: {line}" for line in lines)) from None
    return dict(point)


def _words(labels: Content) -> list[str]:
    """What a name is made of: letters, digits and . _ - alone."""
    pairs = itertools.chain.from_iterable(labels.items())
    return [re.sub(r"[^A-Za-z0-9_.-]+", "_", str(word))[:24] for word in pairs]


def _with(raw: Any, steps: Sequence[str], value: Any, where: str) -> Any:
    """A copy with one place replaced; a number is a place in a list."""
    head, *rest = steps
    if isinstance(raw, list) and head.isdecimal() and int(head) < len(raw):
        place = int(head)
        inner = _with(raw[place], rest, value, where) if rest else value
        return [*raw[:place], inner, *raw[place + 1 :]]
    if isinstance(raw, dict):
        return {**raw, head: _with(raw.get(head, {}), rest, value, where) if rest else value}
    raise SpecError(f"{where}: there is no {head!r}; an adapter is named by its place, as adapters.0.scale")
