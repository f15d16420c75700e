"""The rungs of early stopping: at which steps a run reports an intermediate result, and from which images."""

from collections.abc import Iterator
from dataclasses import dataclass

from harness.config.plan.plan import Cell, Plan, ResolvedArm, arm_at, cells
from harness.config.schema.metric import MetricConfig
from harness.config.schema.search import FifoScheduler, RungObjective


@dataclass(frozen=True)
class IntermediateResult:
    """The value of a run at a rung. `value` is None if there is none, and `reason` says why."""

    run_id: str
    step: int
    value: float | None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step of a run at which it reports.

    Its value is arm − control in the mean of `metric` over the images of `cells`; without arms it is the
    held-out loss.
    """

    run_id: str
    step: int
    arm: ResolvedArm | None = None
    control: ResolvedArm | None = None
    cells: tuple[tuple[Cell, ...], tuple[Cell, ...]] = ((), ())  # of the arm, and of the control
    metric: MetricConfig | None = None


def rung_steps(plan: Plan, run_id: str) -> tuple[int, ...]:
    """The steps at which a run reports to the scheduler; none for what is not a trial's own."""
    scheduler = plan.sweep.scheduler
    if isinstance(scheduler, FifoScheduler) or run_id not in plan.own_runs:
        return ()
    return scheduler.rungs(plan.runs[run_id].checkpoints[-1])


def rungs_of(plan: Plan, run_id: str) -> tuple[Rung, ...]:
    """The rungs of a run, by step."""
    objective = objective_of(plan)
    if not isinstance(objective, RungObjective):
        return tuple(Rung(run_id=run_id, step=step) for step in rung_steps(plan, run_id))
    metric = next(metric for metric in plan.sweep.metrics if metric.name == objective.metric)
    found = []
    for step in rung_steps(plan, run_id):
        arm, control = rung_arms(plan, run_id, step)
        both = rung_cells(plan, arm), rung_cells(plan, control)
        found.append(Rung(run_id=run_id, step=step, arm=arm, control=control, cells=both, metric=metric))
    return tuple(found)


def rung_arms(plan: Plan, run_id: str, step: int) -> tuple[ResolvedArm, ResolvedArm]:
    """The arm with the run's checkpoint at this step, and the control; neither needs other training."""
    objective = objective_of(plan)
    assert isinstance(objective, RungObjective)
    trial = next(trial for trial in plan.trials if trial.run_id == run_id)
    arm, control = (plan.arms[trial.arms[str(name)]] for name in (objective.arm, objective.control))
    return arm_at(arm, step), control


def rung_cells(plan: Plan, arm: ResolvedArm) -> tuple[Cell, ...]:
    """The images of an arm that a rung compares."""
    objective = objective_of(plan)
    assert isinstance(objective, RungObjective)
    dev = [prompt for prompt in plan.sweep.prompts if prompt.split == "dev"]
    return tuple(cells(arm, tuple(dev[: objective.prompts]), plan.sweep.seeds[: objective.seeds], "dev"))


def rung_only_arms(plan: Plan, run_id: str) -> Iterator[ResolvedArm]:
    """What is generated of a run for its rungs alone, if they compare images."""
    if not isinstance(objective_of(plan), RungObjective):
        return
    for step in rung_steps(plan, run_id):
        arm, _ = rung_arms(plan, run_id, step)
        if arm.arm_id not in plan.arms:
            yield arm


def objective_of(plan: Plan) -> object:
    """The objective of the scheduler, or None under fifo."""
    scheduler = plan.sweep.scheduler
    return None if isinstance(scheduler, FifoScheduler) else plan.sweep.meant(scheduler.objective)
