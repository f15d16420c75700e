"""What is asked for in rounds, knowing the tables of what was asked for before: points, then guidances.

Optuna's search asks for `at_once` points, runs all, and tells their objective values. So the points do not
depend on the speed of workers, and an interrupted sweep resumes with the same points, which are stored in its
plan. The sampler is rebuilt for each round, from the search's seed and all values told.

A control with a `match` asks for a guidance at a time, for the selected trial. These stand in the plan too.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from harness.config.plan.axes import (
    Point,
    PointsAndTrials,
    apply_axis,
    base_trial,
    fitted,
    holds,
    key_of,
    order_of,
    random_points,
    trial_points,
)
from harness.config.plan.plan import Plan, Trial
from harness.config.schema.base import fingerprint
from harness.config.schema.evaluation import ArmConfig
from harness.config.schema.search import Axis, OptunaSearch, ValueRange, values_of
from harness.config.schema.sweep import SweepConfig
from harness.results import Results
from harness.results.guidance import Match, guidances_around, match_guidance, matched_statistics
from harness.results.objectives import gains
from harness.store.artifact import read_json
from harness.store.workspace import PLAN, Workspace

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as OptunaTrial
    from optuna.distributions import BaseDistribution


MOST_TRIED = 5  # guidances, each with all dev images of an arm
ATTEMPTS = 50  # at a point that was not asked for before; then one is chosen at random


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became of a point: a gain per objective, more is better; None if it has none."""

    gains: tuple[float, ...] | None
    stopped: bool = False


def with_remembered(sweep: SweepConfig, workspace: Workspace) -> SweepConfig:
    """The sweep with what was asked for in earlier calls, if it is still the same search.

    More trials of the same search are; whatever else decides a result makes it another.
    """
    searches = isinstance(sweep.search, OptunaSearch) and not sweep.search.points
    if not searches and all(arm.match is None or arm.match.trial for arm in sweep.arms):
        return sweep
    try:
        before = SweepConfig.model_validate(read_json(workspace.fetch_sweep(sweep.name) / PLAN))
    except (OSError, ValueError):  # nothing was begun, or by another version
        return sweep
    if _decisive(before) != _decisive(sweep):
        return sweep
    arms = {arm.name: arm for arm in before.arms}
    matched = tuple(arm if arm.match is None else arms[arm.name] for arm in sweep.arms)
    sweep = sweep.model_copy(update={"arms": matched})
    if not isinstance(sweep.search, OptunaSearch):
        return sweep
    assert isinstance(before.search, OptunaSearch)
    return with_points(sweep, before.search.points[: sweep.search.trials])


def with_points(sweep: SweepConfig, points: Sequence[Point]) -> SweepConfig:
    """The sweep with these points asked for."""
    search = sweep.search.model_copy(update={"points": tuple(points)})
    return sweep.model_copy(update={"search": search})


def next_round(
    sweep: SweepConfig, results: Results | None, known: PointsAndTrials = ()
) -> SweepConfig | None:
    """The sweep with a round more asked for; null when there are enough. `results` are of those so far.

    `known` are its points and trials as validated before.
    """
    search = sweep.search
    if not isinstance(search, OptunaSearch) or len(search.points) >= search.trials:
        return None
    wanted = min(search.at_once, search.trials - len(search.points))
    told = [] if results is None else _told(sweep, results, known)
    return with_points(sweep, [*search.points, *_ask(sweep, search, told, wanted)])


def _decisive(sweep: SweepConfig) -> dict[str, Any]:
    content = sweep.model_dump(mode="json", exclude={"name", "question", "tracking", "compute"})
    arms = [_unmatched(arm).model_dump(mode="json") for arm in sweep.arms]
    if not isinstance(sweep.search, OptunaSearch):
        return {**content, "arms": arms}
    return {**content, "arms": arms, "search": {**content["search"], "trials": 0, "at_once": 0, "points": []}}


def _unmatched(arm: ArmConfig) -> ArmConfig:
    """An arm as before its guidance was searched for."""
    if arm.match is None:
        return arm
    match = arm.match.model_copy(update={"trial": None, "tried": (), "missing": None})
    return arm.model_copy(update={"guidance": None, "match": match})


def next_guidances(plan: Plan, results: Results | None) -> SweepConfig | None:
    """The sweep with another guidance to try for each control with a `match`, or with what came of it.

    None where all of them are found or given up, and where no trial was selected.
    """
    if results is None or all(arm.match is None for arm in plan.sweep.arms):
        return None
    selected = set(results.trials.loc[results.trials["selected"].astype(bool), "trial_id"])
    for trial in (trial for trial in plan.trials if trial.trial_id in selected):
        arms = tuple(_one_guidance_on(arm, trial, plan, results) for arm in plan.sweep.arms)
        if arms != plan.sweep.arms:
            return plan.sweep.model_copy(update={"arms": arms})
    return None


def _one_guidance_on(arm: ArmConfig, trial: Trial, plan: Plan, results: Results) -> ArmConfig:
    if arm.match is None:
        return arm
    if arm.match.trial != trial.trial_id:  # another was selected before
        arm = _unmatched(arm)
    assert arm.match is not None
    own = plan.arms[trial.arms[arm.match.arm]]
    target, statistic_at = matched_statistics(
        results,
        own=own.arm_id,
        controls={guidance: found.arm_id for guidance, found in plan.at_other_guidance(trial, arm).items()},
        by=arm.match.by,
    )
    between = arm.match.between or guidances_around(own.guidance)
    tried, by = arm.match.tried, arm.match.by
    if target is None:
        step = Match(not_reachable=f"no dev image of {arm.match.arm} has a value of {by}")
    else:
        step = match_guidance(statistic_at, target, between=between, draws=MOST_TRIED - len(tried))
    if step.draw_next in tried:
        step = Match(not_reachable=f"no dev image at guidance {step.draw_next:g} has a value of {by}")
    if step.draw_next is not None:
        tried = (*tried, step.draw_next)
    state = {"trial": trial.trial_id, "tried": tried, "missing": step.not_reachable}
    return arm.model_copy(update={"guidance": step.found, "match": arm.match.model_copy(update=state)})


def _told(sweep: SweepConfig, results: Results, known: PointsAndTrials) -> list[Told]:
    """What became of each point, in the order in which they were asked for."""
    assert isinstance(sweep.search, OptunaSearch)
    found = gains(results.trials, results.summary, sweep.search.objectives)
    status = results.trials.set_index("trial_id")["status"]
    told = []
    for _, config in trial_points(sweep, known):
        trial_id = fingerprint("trial", config=config)
        values: list[float] = found[found.index == trial_id].to_numpy()[0].tolist()
        finite = all(map(math.isfinite, values))
        told.append(Told(gains=tuple(values) if finite else None, stopped=status[trial_id] == "stopped"))
    return told


def _ask(sweep: SweepConfig, search: OptunaSearch, told: Sequence[Told], wanted: int) -> list[Point]:
    study = _study(sweep, search, told)
    base, order = base_trial(sweep), order_of(sweep.axes)
    seen = {key_of(point) for point in search.points}
    others = random_points(sweep.axes, base, seed=search.seed)
    found: list[Point] = []
    for _ in range(wanted):
        for _ in range(ATTEMPTS):
            point = _suggested(study.ask(), sweep.axes, order, base)
            if key_of(point) not in seen:
                break
        else:
            point = next(p for p in others if key_of(p) not in seen)  # there are enough: it was checked
        seen.add(key_of(point))
        found.append(point)
    return found


def _study(sweep: SweepConfig, search: OptunaSearch, told: Sequence[Told]) -> "Study":
    """A study that knows all that was told, with a sampler of this round's own."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = Random(f"{search.seed} {len(search.points)}").getrandbits(32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # The liar: points of one round, whose results are not known yet, keep away from each other.
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(directions=["maximize"] * len(search.objectives), sampler=sampler)
    for point, became in zip(search.points, told, strict=True):
        one = len(search.objectives) == 1
        state = "COMPLETE" if became.gains else "PRUNED" if became.stopped and one else "FAIL"
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                params={name: _parameter(sweep.axes[name], value) for name, value in point.items()},
                distributions={name: _distribution(sweep.axes[name]) for name in point},
                values=became.gains,
            )
        )
    return study


def _suggested(
    trial: "OptunaTrial", axes: Mapping[str, Axis], order: Sequence[str], base: Mapping[str, Any]
) -> Point:
    """The trial's values of the axes that are applied."""
    raw, point = dict(base), {}
    for name in order:
        if holds(axes[name], raw):
            point[name] = _value(axes[name], name, trial)
            raw = apply_axis(raw, name, point[name])
    return {name: point[name] for name in axes if name in point}


def _value(axis: Axis, name: str, trial: "OptunaTrial") -> Any:
    """A range has an order; a list is a choice among its places, as its values may be whole sections."""
    if not isinstance(axis, ValueRange):
        return values_of(axis)[trial.suggest_categorical(name, list(range(len(values_of(axis)))))]
    low, high, log, step = axis.low, axis.high, axis.log, axis.step
    if axis.whole:
        return trial.suggest_int(name, int(low), int(high), log=log, step=int(step or 1))
    return fitted(axis, trial.suggest_float(name, low, high, log=log, step=step))


def _parameter(axis: Axis, value: Any) -> Any:
    return value if isinstance(axis, ValueRange) else values_of(axis).index(value)


def _distribution(axis: Axis) -> "BaseDistribution":
    """The same as `_value` asks from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(axis, ValueRange):
        return CategoricalDistribution(list(range(len(values_of(axis)))))
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(float(axis.low), float(axis.high), log=axis.log, step=axis.step)
