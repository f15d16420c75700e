"""What becomes of training runs on their way, by what they have come to at certain steps."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.spec.base import Frozen
from harness.spec.objective import LookObjective, ProbeObjective


class FifoScheduler(Frozen):
    """Every training run is carried to its end."""

    kind: Literal["fifo"] = "fifo"


class AshaScheduler(Frozen):
    """Asynchronous successive halving (Li et al. 2020): at each rung the best share goes on.

    Rungs are at `grace`, `grace` × `reduction_factor`, … steps.
    """

    kind: Literal["asha"]
    objective: LookObjective = Field(default_factory=ProbeObjective)
    grace: Annotated[int, Field(ge=1, description="steps of the first rung")]
    reduction_factor: Annotated[float, Field(gt=1, description="at each rung, one in so many goes on")] = 3

    def looks(self, last: int) -> tuple[int, ...]:
        """The steps at which a run of `last` steps is looked at; at its end there is nothing to stop."""
        return tuple(_below(last, (math.ceil(self.grace * self.reduction_factor**k) for k in range(last))))


class MedianScheduler(Frozen):
    """The median stopping rule (Golovin et al. 2017).

    A run goes on while its best value so far is at least the median of the others' means so far.
    """

    kind: Literal["median"]
    objective: LookObjective = Field(default_factory=ProbeObjective)
    grace: Annotated[int, Field(ge=1, description="steps before the first look")]
    every: Annotated[int, Field(ge=1, description="steps between looks")]
    min_runs: Annotated[int, Field(ge=1, description="other runs that must have come as far")] = 3

    def looks(self, last: int) -> tuple[int, ...]:
        """As of AshaScheduler."""
        return tuple(range(self.grace, last, self.every))


class Member(Frozen):
    """One place of a population over one generation."""

    point: Annotated[dict[str, Any], Field(description="its values of the axes")]
    parent: Annotated[
        int | None,
        Field(description="the member of the generation before that it went on from; null: itself"),
    ] = None
    value: Annotated[float | None, Field(description="what it had come to at the end")] = None
    reason: Annotated[str | None, Field(description="why there is no value")] = None


class PopulationScheduler(Frozen):
    """Population based training (Jaderberg et al. 2017), in generations of `every` steps.

    At the end of each, the worst go on from where one of the best is, with values near its.
    """

    kind: Literal["population"]
    objective: LookObjective = Field(default_factory=ProbeObjective)
    every: Annotated[int, Field(ge=1, description="steps of a generation")]
    quantile: Annotated[
        float,
        Field(gt=0, le=0.5, description="share of the members that is replaced, and that it goes on from"),
    ] = 0.25
    resample: Annotated[
        float, Field(ge=0, le=1, description="how often a value is drawn anew instead of moved")
    ] = 0.25
    perturb: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(min_length=1, description="factors that a value of a range is moved by"),
    ] = (0.8, 1.25)
    seed: Annotated[int, Field(ge=0)] = 0
    generations: Annotated[
        tuple[tuple[Member, ...], ...],
        Field(description="what became of the members so far; filled in while the sweep is run"),
    ] = ()

    def looks(self, last: int) -> tuple[int, ...]:
        """The ends of the generations, without the last."""
        return tuple(range(self.every, last, self.every))


StoppingScheduler = AshaScheduler | MedianScheduler
SchedulerSpec = Annotated[
    FifoScheduler | AshaScheduler | MedianScheduler | PopulationScheduler, Field(discriminator="kind")
]


def _below(last: int, rising: Iterator[int]) -> Iterator[int]:
    before = 0
    for step in rising:
        if step >= last:
            return
        if step > before:  # a factor near 1 gives some steps twice
            yield step
        before = step
