"""How the trials of a sweep are chosen from its axes: all, some at random, or those Optuna asks for."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from harness.spec.base import Frozen
from harness.spec.objective import ContrastObjective, LossObjective

AxisValues = Annotated[tuple[Any, ...], Field(min_length=1)]
Number = int | float


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


# What must hold for an axis to be applied: a field of the trial has one of these values.
When = dict[str, Annotated[tuple[Any, ...], BeforeValidator(_listed), Field(min_length=1)]]


class ConditionalValues(Frozen):
    """An axis that is applied only where the other fields are as `when` says; elsewhere it is null."""

    values: AxisValues
    when: Annotated[When, Field(min_length=1)]


class ValueRange(Frozen):
    """An axis of a random search, from `low` to `high`, both included.

    Whole numbers where `low` and `high` are whole; else of four significant digits.
    """

    low: Number
    high: Number
    log: Annotated[bool, Field(description="each order of magnitude is as likely as another")] = False
    step: Annotated[Number | None, Field(gt=0, description="low, low + step, …; null: all of them")] = None
    when: When = Field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """True where its values are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 0))

    @model_validator(mode="after")
    def _consistent(self) -> "ValueRange":
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.log and (self.step is not None or self.low <= 0):
            raise ValueError("log needs a low above 0 and no step")
        return self


Axis = AxisValues | ConditionalValues | ValueRange


class GridSearch(Frozen):
    """Every point of the axes' product."""

    kind: Literal["grid"] = "grid"


class RandomSearch(Frozen):
    """Points drawn at random, all different. More `trials` of the same `seed` begin with the same ones."""

    kind: Literal["random"]
    trials: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 0


SearchObjective = Annotated[ContrastObjective | LossObjective, Field(discriminator="kind")]


class OptunaSearch(Frozen):
    """Points asked of Optuna's TPE (Bergstra et al. 2011; of several objectives, Ozaki et al. 2022)."""

    kind: Literal["optuna"]
    trials: Annotated[int, Field(ge=1)]
    at_once: Annotated[
        int, Field(ge=1, description="points of a round: each is asked for knowing all before")
    ] = 4
    seed: Annotated[int, Field(ge=0)] = 0
    objectives: Annotated[
        tuple[SearchObjective, ...], Field(min_length=1, description="several: a Pareto front")
    ] = (ContrastObjective(),)
    points: Annotated[
        tuple[dict[str, Any], ...], Field(description="asked for so far; filled in while the sweep is run")
    ] = ()


SearchSpec = Annotated[GridSearch | RandomSearch | OptunaSearch, Field(discriminator="kind")]


def values_of(axis: Axis) -> tuple[Any, ...]:
    """The values that an axis lists; of a range its ends, which bound all that it may take."""
    match axis:
        case ValueRange(low=low, high=high):
            return (low, high)
        case ConditionalValues(values=values):
            return values
        case values:
            return values


def conditions(axis: Axis) -> When:
    """What must hold for the axis to be applied; empty where it always is."""
    return {} if isinstance(axis, tuple) else axis.when
