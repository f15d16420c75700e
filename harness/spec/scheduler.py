"""Which training runs are stopped before their end, by what they have come to at certain steps."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

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


StoppingScheduler = AshaScheduler | MedianScheduler
SchedulerSpec = Annotated[FifoScheduler | AshaScheduler | MedianScheduler, Field(discriminator="kind")]


def _below(last: int, rising: Iterator[int]) -> Iterator[int]:
    before = 0
    for step in rising:
        if step >= last:
            return
        if step > before:  # a factor near 1 gives some steps twice
            yield step
        before = step
