"""The base of every specification: frozen, closed, and honest about what bears identity."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class How:
    """Marks a field that says where or how, not what: it never enters a fingerprint.

    Paths, labels and batch sizes for drawing are of this kind: moving a folder or renaming a recipe
    must not train anything again.
    """


HOW = How()


class Frozen(BaseModel):
    """A specification. Immutable; an unknown key is an error; NaN and infinity are not numbers here."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=False, validate_default=True
    )

    def how(self) -> set[str]:
        """The fields that never enter this specification's fingerprint."""
        return {name for name, field in type(self).model_fields.items() if HOW in field.metadata}


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Label = Annotated[str | None, Field(default=None, max_length=40), HOW]
