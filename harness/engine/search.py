"""Optuna's search, in rounds: ask for `at_once` points, run all, tell their objective values.

So the points do not depend on the speed of workers, and an interrupted sweep resumes with the same points,
which are stored in its plan. The sampler is rebuilt for each round, from the search's seed and all values
told.
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
from harness.config.schema.base import fingerprint
from harness.config.schema.search import Axis, OptunaSearch, ValueRange, values_of
from harness.config.schema.sweep import SweepConfig
from harness.results import Results
from harness.results.objectives import gains
from harness.store.artifact import read_json
from harness.store.workspace import PLAN, Workspace

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution


ATTEMPTS = 50  # at a point that was not asked for before; then one is chosen at random


@dataclass(frozen=True, kw_only=True)
class Told:
    """What became of a point: a gain per objective, more is better; None if it has none."""

    gains: tuple[float, ...] | None
    stopped: bool = False


def with_remembered_points(sweep: SweepConfig, workspace: Workspace) -> SweepConfig:
    """The sweep with the points that were asked for in earlier calls, if it is still the same search.

    More trials of the same search are; whatever else decides a result makes it another.
    """
    if not isinstance(sweep.search, OptunaSearch) or sweep.search.points:
        return sweep
    try:
        before = SweepConfig.model_validate(read_json(workspace.fetch_sweep(sweep.name) / PLAN))
    except (OSError, ValueError):  # nothing was begun, or by another version
        return sweep
    if not isinstance(before.search, OptunaSearch) or _decisive(before) != _decisive(sweep):
        return sweep
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
    return {**content, "search": {**content["search"], "trials": 0, "at_once": 0, "points": []}}


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
    trial: "Trial", axes: Mapping[str, Axis], order: Sequence[str], base: Mapping[str, Any]
) -> Point:
    """The trial's values of the axes that are applied."""
    raw, point = dict(base), {}
    for name in order:
        if holds(axes[name], raw):
            point[name] = _value(axes[name], name, trial)
            raw = apply_axis(raw, name, point[name])
    return {name: point[name] for name in axes if name in point}


def _value(axis: Axis, name: str, trial: "Trial") -> Any:
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
