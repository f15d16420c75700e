"""How trials are chosen from the axes, which training runs are stopped early, and by which objective.

An objective is a paired contrast, or the loss at fixed noise.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from harness.config.schema.base import Count, Frozen, Name, Seed, Steps


class ContrastObjective(Frozen):
    """Adapter arm − control on a metric: the mean over dev prompts of the mean over each prompt's pairs."""

    kind: Literal["contrast"] = "contrast"
    metric: Annotated[Name | None, Field(description="null: analysis.primary")] = None
    arm: Annotated[
        Name | None, Field(description="null: the first arm in which the trial's own adapter acts")
    ] = None
    control: Annotated[Name | None, Field(description="null: analysis.control")] = None


class LossObjective(Frozen):
    """The loss on held-out images at fixed noise; needs training.holdout. Lower is better."""

    kind: Literal["validation_loss"]


class RungObjective(ContrastObjective):
    """A contrast on the first dev prompts and seeds alone, generated at each rung of a run."""

    prompts: Annotated[Count, Field(description="of the dev prompts, the first so many")] = 4
    seeds: Annotated[Count, Field(description="of the sweep's seeds, the first so many")] = 1


SchedulerObjective = Annotated[RungObjective | LossObjective, Field(discriminator="kind")]


class FifoScheduler(Frozen):
    """Every training run is carried to its end."""

    kind: Literal["fifo"] = "fifo"


class AshaScheduler(Frozen):
    """Asynchronous successive halving (Li et al. 2020): at each rung the best share goes on.

    Rungs are at `grace`, `grace` × `reduction_factor`, … steps.
    """

    kind: Literal["asha"]
    objective: SchedulerObjective = Field(default_factory=RungObjective)
    grace: Annotated[Steps, Field(description="steps of the first rung")]
    reduction_factor: Annotated[float, Field(gt=1, description="at each rung, one in so many goes on")] = 3

    def rungs(self, last: int) -> tuple[int, ...]:
        """The steps at which a run of `last` steps is looked at; at its end there is nothing to stop."""
        return tuple(_below(last, (math.ceil(self.grace * self.reduction_factor**k) for k in range(last))))


class MedianScheduler(Frozen):
    """The median stopping rule (Golovin et al. 2017).

    A run goes on while its best value so far is at least the median of the others' means so far.
    """

    kind: Literal["median"]
    objective: SchedulerObjective = Field(default_factory=RungObjective)
    grace: Annotated[Steps, Field(description="steps of the first rung")]
    every: Annotated[Steps, Field(description="steps between rungs")]
    min_runs: Annotated[Count, Field(description="other runs that must have come as far")] = 3

    def rungs(self, last: int) -> tuple[int, ...]:
        """As of AshaScheduler."""
        return tuple(range(self.grace, last, self.every))


StoppingScheduler = AshaScheduler | MedianScheduler
SchedulerConfig = Annotated[FifoScheduler | AshaScheduler | MedianScheduler, Field(discriminator="kind")]


def _below(last: int, rising: Iterator[int]) -> Iterator[int]:
    before = 0
    for step in rising:
        if step >= last:
            return
        if step > before:  # a factor near 1 gives some steps twice
            yield step
        before = step


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
    trials: Count
    seed: Seed = 0


SearchObjective = Annotated[ContrastObjective | LossObjective, Field(discriminator="kind")]


class OptunaSearch(Frozen):
    """Points asked of Optuna's TPE (Bergstra et al. 2011; of several objectives, Ozaki et al. 2022)."""

    kind: Literal["optuna"]
    trials: Count
    at_once: Annotated[
        int, Field(ge=1, le=100_000, description="points of a round: each is asked for knowing all before")
    ] = 4
    seed: Seed = 0
    objectives: Annotated[
        tuple[SearchObjective, ...], Field(min_length=1, description="several: a Pareto front")
    ] = (ContrastObjective(),)
    points: Annotated[
        tuple[dict[str, Any], ...], Field(description="asked for so far; filled in while the sweep is run")
    ] = ()


SearchConfig = Annotated[GridSearch | RandomSearch | OptunaSearch, Field(discriminator="kind")]


def values_of(axis: Axis) -> tuple[Any, ...]:
    """The values that an axis lists; of a range its ends, which bound all that it may take."""
    match axis:
        case ValueRange(low=low, high=high):
            return (low, high)
        case ConditionalValues(values=values):
            return values
        case values:
            return values


def with_values(axis: Axis, values: Sequence[Any]) -> Axis:
    """The axis with other values in the places of `values_of(axis)`."""
    match axis:
        case ValueRange():
            return axis.model_copy(update={"low": values[0], "high": values[1]})
        case ConditionalValues():
            return axis.model_copy(update={"values": tuple(values)})
        case _:
            return tuple(values)


def conditions(axis: Axis) -> When:
    """What must hold for the axis to be applied; empty where it always is."""
    return {} if isinstance(axis, tuple) else axis.when
