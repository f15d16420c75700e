"""The members of a population as trials: which axes change on the way, and what each has been."""

import math
from collections.abc import Iterable, Iterator, Sequence

from harness.spec.history import PLACES, phases
from harness.spec.scheduler import Member, PopulationScheduler, SchedulerSpec
from harness.spec.training import Phase

CHANGING = {f"training.{place}": name for name, place in PLACES.items()}  # axes, as a phase names them


def changing(axes: Iterable[str]) -> list[str]:
    """The axes whose values a population changes; the others go with the member that is gone on from."""
    return [name for name in axes if name in CHANGING]


def replaced_each_time(members: int, quantile: float) -> int:
    """How many members are replaced at the end of a generation, and how many are gone on from, at most."""
    return min(math.ceil(members * quantile), members // 2)


def is_evolved(scheduler: SchedulerSpec) -> bool:
    """True for a population that has replaced members."""
    return isinstance(scheduler, PopulationScheduler) and len(scheduler.generations) > 1


def ancestry(generations: Sequence[Sequence[Member]], number: int) -> list[int]:
    """The place, in each generation, of what a member of the last one has been."""
    places = []
    for generation in reversed(generations):
        places.append(number)
        parent = generation[number].parent
        number = number if parent is None else parent
    return places[::-1]


def members(scheduler: PopulationScheduler) -> Iterator[tuple[Member, tuple[Phase, ...]]]:
    """Those of the last generation, each with the history of its training."""
    for number in range(len(scheduler.generations[-1])):
        places = ancestry(scheduler.generations, number)
        been = [generation[place] for generation, place in zip(scheduler.generations, places, strict=True)]
        *before, now = [
            {CHANGING[name]: member.point[name] for name in changing(member.point)} for member in been
        ]
        ends = [scheduler.every * (count + 1) for count in range(len(before))]
        yield been[-1], phases(list(zip(ends, before, strict=True)), now)
