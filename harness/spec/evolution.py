"""Population based training, as far as it is arithmetic: a generation as a sweep, and the next generation.

M. Jaderberg et al., "Population Based Training of Neural Networks" (2017). The next generation is a pure
function of the scheduler's seed and of what the members have come to, so the same command again, or after a
kill, goes through the same generations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from harness.spec.evaluation import ArmAdapter, ArmSpec
from harness.spec.objective import ProbeObjective
from harness.spec.points import Point, base_trial, drawn, fitted, points
from harness.spec.population import changing, replaced_each_time
from harness.spec.scheduler import Member, PopulationScheduler
from harness.spec.search import Axis, ValueRange, values_of
from harness.spec.sweep import SweepSpec

ATTEMPTS = 50  # at values that no other of the generation has


@dataclass(frozen=True)
class Became:
    """What a member had come to; `value` is null where that could not be told, and `reason` says why."""

    value: float | None
    reason: str | None = None


def population_of(sweep: SweepSpec) -> PopulationScheduler:
    """The sweep's scheduler, which must be one."""
    assert isinstance(sweep.scheduler, PopulationScheduler)
    return sweep.scheduler


def count(sweep: SweepSpec) -> int:
    """How many generations there will have been at the end."""
    return sweep.training.steps // population_of(sweep).every


def with_generations(sweep: SweepSpec, generations: Sequence[tuple[Member, ...]]) -> SweepSpec:
    """The sweep with a population that has gone through these generations; the last is under way."""
    scheduler = population_of(sweep).model_copy(update={"generations": tuple(generations)})
    return sweep.model_copy(update={"scheduler": scheduler})


def with_remembered_generations(sweep: SweepSpec, before: SweepSpec | None) -> SweepSpec:
    """The sweep with the generations of the sweep `before`, if it is still the same population.

    More steps, prompts, arms or metrics beside those that it is compared by leave it the same. Where there
    are none, its first generation are the points of the search.
    """
    generations = population_of(sweep).generations
    if not generations and before is not None and _decisive(before) == _decisive(sweep):
        generations = population_of(before).generations[: count(sweep)]
    first = tuple(Member(point=point) for point in points(sweep, base_trial(sweep)))
    return with_generations(sweep, generations or (first,))


def _decisive(sweep: SweepSpec) -> dict[str, Any] | None:
    """What the values of its members hang on; null where it has none."""
    if not isinstance(sweep.scheduler, PopulationScheduler):
        return None
    compared = with_generations(sweep.model_copy(update=_compared(sweep)), ())
    content = compared.model_dump(
        mode="json", exclude={"name", "question", "tracking", "compute", "analysis"}
    )
    return {**content, "training": {**content["training"], "steps": 0}}


def _compared(sweep: SweepSpec) -> dict[str, Any]:
    """Of a sweep, what its members are compared by alone."""
    objective = sweep.meant(population_of(sweep).objective)
    if not isinstance(objective, ProbeObjective):  # nothing is drawn; a sham would be trained in vain
        own = ArmSpec(name="own", adapters=(ArmAdapter(),))
        return {"arms": (ArmSpec(name="none"), own), "metrics": (), "prompts": (), "seeds": ()}
    return {
        "arms": tuple(arm for arm in sweep.arms if arm.name in (objective.arm, objective.control)),
        "metrics": tuple(metric for metric in sweep.metrics if metric.kind == objective.metric),
        "prompts": tuple(prompt for prompt in sweep.prompts if prompt.split == "dev")[: objective.prompts],
        "seeds": sweep.seeds[: objective.seeds],
    }


def generation_name(sweep: SweepSpec) -> str:
    """What it is called while it is under way; of a generation's own sweep or the whole one."""
    generations = population_of(sweep).generations
    return f"generation {len(generations)}, of {len(generations[-1])} members"


def generation_sweep(sweep: SweepSpec) -> SweepSpec | None:
    """The generation that is under way as a sweep of its own; null where it is the last, or there is none."""
    if not isinstance(scheduler := sweep.scheduler, PopulationScheduler):
        return None
    if len(scheduler.generations) >= count(sweep):
        return None
    steps = scheduler.every * len(scheduler.generations)
    training = sweep.training.model_copy(update={"steps": steps})
    return sweep.model_copy(update={**_compared(sweep), "training": training})


def is_grown(sweep: SweepSpec) -> bool:
    """False for a population before its last generation: what a member becomes hangs on the others."""
    return generation_sweep(sweep) is None


def evolved(sweep: SweepSpec, became: Sequence[Became]) -> SweepSpec:
    """The sweep with what its members have come to noted, and a generation more. One at least has a value."""
    *earlier, members = population_of(sweep).generations
    noted = tuple(
        member.model_copy(update={"value": one.value, "reason": one.reason})
        for member, one in zip(members, became, strict=True)
    )
    return with_generations(sweep, [*earlier, noted, _next(sweep, noted, number=len(earlier) + 1)])


def _next(sweep: SweepSpec, members: Sequence[Member], *, number: int) -> tuple[Member, ...]:
    """Exploit and explore: who is replaced, by whom, and with which values."""
    scheduler = population_of(sweep)
    sign = 1 if sweep.more_is_better(scheduler.objective) else -1
    known = {place: sign * one.value for place, one in enumerate(members) if one.value is not None}
    order = sorted(known, key=lambda place: -known[place]) + [
        place for place in range(len(members)) if place not in known
    ]
    share = replaced_each_time(len(members), scheduler.quantile)
    best = order[: min(share, len(known))]
    replaced = {*order[len(members) - share :], *order[len(known) :]} - set(best)
    following: list[Member] = []
    taken = [member.point for place, member in enumerate(members) if place not in replaced]
    for place, member in enumerate(members):
        if place in replaced:
            generator = Random(f"{scheduler.seed} {number} {place}")
            parent = generator.choice(best)
            point = _explored(sweep, members[parent].point, taken, generator)
            following.append(Member(point=point, parent=parent))
            taken.append(point)
        else:
            following.append(Member(point=member.point))
    return tuple(following)


def _explored(sweep: SweepSpec, point: Point, taken: Sequence[Point], generator: Random) -> Point:
    """The point with other values of the axes that change; the same again only where there are no others."""
    scheduler = population_of(sweep)
    found = point
    for attempt in range(2 * ATTEMPTS):
        resample = scheduler.resample if attempt < ATTEMPTS else 1  # what lies around may be taken
        moved = {
            name: drawn(sweep.axes[name], generator)
            if generator.random() < resample
            else _moved(sweep.axes[name], point[name], scheduler.perturb, generator)
            for name in changing(point)
        }
        found = {**point, **moved}
        if found not in taken:
            break
    return found


def _moved(axis: Axis, value: Any, factors: Sequence[float], generator: Random) -> Any:
    """A range's value times a factor; of a list, or a range in steps, the one before or after."""
    if isinstance(axis, ValueRange) and axis.step is None:
        return fitted(axis, value * generator.choice(factors))
    if isinstance(axis, ValueRange):
        assert axis.step is not None
        return fitted(axis, value + generator.choice((-axis.step, axis.step)))
    values = values_of(axis)
    place = values.index(value) + generator.choice((-1, 1))
    return values[min(max(place, 0), len(values) - 1)]
