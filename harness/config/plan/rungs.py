"""The rungs of early stopping: at which steps a run reports, and from which images."""

from collections.abc import Iterator
from dataclasses import dataclass

from harness.config.plan.plan import Cell, Plan, ResolvedArm, arm_at, cells
from harness.config.schema.search import FifoScheduler, ProbeObjective


@dataclass(frozen=True)
class Look:
    """What a run had come to. `value` is null where it could not be told, and `reason` says why."""

    run_id: str
    step: int
    value: float | None
    reason: str | None = None


def steps_of_looks(plan: Plan, run_id: str) -> tuple[int, ...]:
    """The steps at which the sweep's scheduler looks at a run; none for what is not a trial's own."""
    scheduler = plan.sweep.scheduler
    if isinstance(scheduler, FifoScheduler) or run_id not in plan.own_runs:
        return ()
    return scheduler.looks(plan.runs[run_id].checkpoints[-1])


def probe_draws(plan: Plan, run_id: str, step: int) -> tuple[ResolvedArm, ResolvedArm]:
    """The arm with the run's checkpoint at this step, and the control; neither needs other training."""
    objective = probe_objective(plan)
    assert isinstance(objective, ProbeObjective)
    trial = next(trial for trial in plan.trials if trial.run_id == run_id)
    arm, control = (plan.arms[trial.arms[str(name)]] for name in (objective.arm, objective.control))
    return arm_at(arm, step), control


def probe_cells(plan: Plan, arm: ResolvedArm) -> tuple[Cell, ...]:
    """The images of a draw that a look is at."""
    objective = probe_objective(plan)
    assert isinstance(objective, ProbeObjective)
    dev = [prompt for prompt in plan.sweep.prompts if prompt.split == "dev"]
    return tuple(cells(arm, tuple(dev[: objective.prompts]), plan.sweep.seeds[: objective.seeds], "dev"))


def probes_of_run(plan: Plan, run_id: str) -> Iterator[ResolvedArm]:
    """What is drawn of a run at its looks alone, where they are at images."""
    if not isinstance(probe_objective(plan), ProbeObjective):
        return
    for step in steps_of_looks(plan, run_id):
        arm, _ = probe_draws(plan, run_id, step)
        if arm.arm_id not in plan.arms:
            yield arm


def probe_objective(plan: Plan) -> object:
    """The objective of the scheduler, or None under fifo."""
    scheduler = plan.sweep.scheduler
    return None if isinstance(scheduler, FifoScheduler) else plan.sweep.meant(scheduler.objective)
