"""The base of every config: frozen, closed, and with a fingerprint.

The fingerprint is the sha256 of what decides a result, and of nothing else. Literals are hashed; a field
marked `NOT_HASHED` (a path, a label, a batch size for generation) is not. A value without a stable form
raises.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class How:
    """Marks a field that says where or how, not what: it never enters a fingerprint.

    Paths, labels and batch sizes for generating are of this kind: moving a folder or renaming a recipe
    must not train anything again.
    """


NOT_HASHED = How()


class Frozen(BaseModel):
    """A specification. Immutable; an unknown key is an error; NaN and infinity are not numbers here."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=False, validate_default=True
    )

    def how(self) -> set[str]:
        """The fields that never enter this specification's fingerprint."""
        return {name for name, field in type(self).model_fields.items() if NOT_HASHED in field.metadata}


Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]  # what a column of the tables holds
Steps = Annotated[int, Field(ge=1, le=1_000_000)]  # of an optimizer
SamplerSteps = Annotated[int, Field(ge=1, le=1000)]  # as many as there are timesteps
Count = Annotated[int, Field(ge=1, le=100_000)]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]
Label = Annotated[str | None, Field(default=None, max_length=40), NOT_HASHED]


Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def identity(value: Any) -> Json:
    """The part of a specification that bears identity, as JSON. Raises TypeError for anything unstable."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value  # 8 and 8.0 are the same guidance
    if isinstance(value, Frozen):
        names = sorted(type(value).model_fields.keys() - value.how())
        return {name: identity(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a mapping with keys that are not strings has no stable identity")
        return {key: identity(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [identity(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no stable identity: {value!r}")


def fingerprint(kind: str, **parts: Any) -> str:
    """16 hex digits that name a stage of this kind with these parts. Stable across processes and versions."""
    content = {name: identity(part) for name, part in parts.items()}
    text = json.dumps({"kind": kind, **content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
