"""Pydantic's errors as lines a user can act on: which key, what is wrong with it, what is allowed."""

import difflib
import json
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.config.loading.files import one_line

MOST_NAMES = 24  # that an error lists
MOST_FAULTS = 8  # that are told at once
MOST_LETTERS = 299  # of an error
Location = tuple[int | str, ...]


def unknown(name: str, allowed: Iterable[str], *, prefix: str = "") -> str:
    """`adapter.rnak is not known; did you mean adapter.rank? allowed: alpha, kind, rank`.

    Of many names the three nearest are told.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6 if len(names) <= MOST_NAMES else 0.3)
    given = one_line(f"{prefix}{name}", 80)
    if len(names) > MOST_NAMES:
        hint = f"did you mean {', '.join(prefix + other for other in near)}? " if near else ""
        return f"{given} is not known; {hint}sweeps/README.md has all {len(names)} names"
    hint = f"did you mean {prefix}{near[0]}? " if near else ""
    return f"{given} is not known; {hint}allowed: {', '.join(names)}"


def show(value: Any) -> str:
    """A value as it would stand in YAML."""
    return json.dumps(value, ensure_ascii=False, default=str)


def truths(raw: Any, held: Any, where: str = "") -> Iterator[str]:
    """Truth values that pydantic took for numbers: what was given beside what came of it."""
    match raw:
        case bool() if isinstance(held, int | float) and not isinstance(held, bool):
            yield f"{where}: {show(raw)} is not allowed: must be a number"
        case dict() if isinstance(held, dict):
            for key in raw.keys() & held.keys():
                yield from truths(raw[key], held[key], f"{where}.{key}" if where else str(key))
        case list() | tuple() if isinstance(held, list | tuple):
            for place, (one, other) in enumerate(zip(raw, held, strict=False)):
                yield from truths(one, other, f"{where}[{place}]")


def told(where: str, lines: Sequence[str]) -> str:
    """Faults, a line each, with the file that they are in: the first few, and each cut where it is long."""
    shown = [one_line(f"{where}: {line}", MOST_LETTERS) for line in lines[:MOST_FAULTS]]
    if len(lines) > MOST_FAULTS:
        shown.append(f"{where}: and {len(lines) - MOST_FAULTS} more faults")
    return "\n".join(shown)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: the key's dotted name and what is wrong with its value."""

    name: str
    text: str
    fields: tuple[str, ...]  # the keys allowed there

    @property
    def is_unknown(self) -> bool:
        """True where the key itself is the fault, not its value."""
        return not self.text

    def line(self, name: str) -> str:
        """The whole line, with the key under the name that the user wrote it."""
        if not self.is_unknown:
            return name + self.text
        parent, dot, last = name.rpartition(".")
        return unknown(last, self.fields, prefix=parent + dot)


def faults(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """The faults of a validation, one per key. `model` is what was validated."""
    found: dict[str, list[tuple[ErrorDetails, tuple[str, ...]]]] = {}
    details = error.errors(include_url=False)
    for detail in details:
        if detail["type"] == "too_short" and _has_inner(detail["loc"], details):
            continue  # pydantic counts only the valid elements; their own errors say what is wrong
        name, fields = locate(model, detail["loc"])
        found.setdefault(name, []).append((detail, fields))
    return [
        Fault(
            name=name,
            text=_text(name, [detail for detail, _ in same]),
            fields=same[0][1],
        )
        for name, same in found.items()
    ]


def locate(model: type[BaseModel], location: Location) -> tuple[str, tuple[str, ...]]:
    """The dotted name of an error's location, and the fields of the innermost mapping it names.

    Pydantic's location also holds the kind of a union and the branch of a plain one, which no user wrote.
    """
    name, fields = "", tuple(model.model_fields)
    here: Any = model
    for step in location:
        here = _bare(here)
        if isinstance(step, int):
            name += f"[{step}]"
            inner = get_args(here)
            here = inner[0] if Ellipsis in inner else inner[min(step, len(inner) - 1)]
        elif (kinds := kinds_of(here)) and step in kinds:
            here = kinds[step]
            fields = tuple(here.model_fields)
        elif isinstance(here, type) and issubclass(here, BaseModel):
            name += f".{step}"
            fields = tuple(here.model_fields)
            if step not in fields:
                break
            here = here.model_fields[step].annotation
        elif get_origin(here) is dict:
            name += f".{step}"
            here = get_args(here)[1]
    return name.removeprefix("."), fields


def kinds_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The members of a union of specifications by the value of their `kind`; empty for anything else."""
    annotation = _bare(annotation)
    members = get_args(annotation) if _is_union(annotation) else ()
    members = tuple(_bare(member) for member in members if member is not types.NoneType)
    if not members or not all(isinstance(m, type) and issubclass(m, BaseModel) for m in members):
        return {}
    return {kind: member for member in members for kind in get_args(member.model_fields["kind"].annotation)}


def members_of(annotation: Any) -> list[type[BaseModel]]:
    """The specifications that a value of this annotation can be: kinds, one, or none for plain ones."""
    bare = _bare(annotation)
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return [bare]
    return list(dict.fromkeys(kinds_of(bare).values()))


def _bare(annotation: Any) -> Any:
    """Without `Annotated` and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if _is_union(annotation):
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        if len(members) == 1:
            return _bare(members[0])
    return annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _has_inner(location: Location, details: Sequence[ErrorDetails]) -> bool:
    return any(len(d["loc"]) > len(location) and d["loc"][: len(location)] == location for d in details)


def _text(name: str, details: Sequence[ErrorDetails]) -> str:
    """What follows the name; empty where the name is unknown.

    Several details are the branches of one union, which all refuse the same value.
    """
    first = details[0]
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            return ""
        case "missing":
            return " is missing"
        case "union_tag_invalid":
            allowed = context["expected_tags"].replace("'", "").split(", ")
            return f".kind: {unknown(context['tag'], allowed)}"
        case "union_tag_not_found":
            return ".kind is missing"
        case "value_error":
            return f": {context['error']}" if name else str(context["error"])
    wanted = " or ".join(dict.fromkeys(_requirement(detail) for detail in details))
    given = first["input"]
    if not isinstance(given, dict | list | tuple):
        return f": {one_line(show(given), 80)} is not allowed: must be {wanted}"
    return f": must be {wanted}" if given else f" is empty: must be {wanted}"


def _requirement(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "greater_than_equal":
            return f"≥ {context['ge']:g}"
        case "greater_than":
            return f"> {context['gt']:g}"
        case "less_than_equal":
            return f"≤ {context['le']:g}"
        case "less_than":
            return f"< {context['lt']:g}"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return "a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "a number"
        case "string_type":
            return "text (in quotes where it looks like a number)"
        case "string_too_short":
            return "text that is not empty"
        case "string_too_long":
            return f"at most {context['max_length']} characters"
        case "string_pattern_mismatch":
            return "at most 64 letters, digits and . _ - and begin with a letter or digit"
        case "literal_error":
            names = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            near = difflib.get_close_matches(str(detail["input"]), names, n=3, cutoff=0.0)
            return f"one of {', '.join(names if len(names) <= MOST_NAMES // 2 else [*near, '…'])}"
        case "tuple_type":
            return "a list, as [a, b]"
        case "too_short":
            return f"a list of at least {context['min_length']}"
        case "too_long":
            return f"a list of at most {context['max_length']}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "a mapping, as {key: value}"
        case other:
            return f"{detail['msg']} ({other})"
