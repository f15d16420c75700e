from typing import Annotated

import pytest
from pydantic import ValidationError

from harness.config.schema.base import NOT_HASHED, Frozen, Label, Name, Text


class Example(Frozen):
    size: float = 1.0
    title: Text = "t"
    name: Name = "n"
    label: Label = None
    folder: Annotated[str, NOT_HASHED] = "here"


@pytest.mark.parametrize(
    "values",
    [
        {"sise": 1},
        {"size": float("nan")},
        {"size": float("inf")},
        {"title": "   "},
        {"name": "../up"},
        {"name": ""},
        {"name": "a" * 65},
        {"label": "a" * 41},
    ],
)
def test_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate(values)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        Example().size = 2.0  # type: ignore[misc]


def test_how_names_the_fields_that_bear_no_identity() -> None:
    assert Example().how() == {"label", "folder"}
