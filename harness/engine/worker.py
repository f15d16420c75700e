"""Runs one task: a plain function of a plan and a store, in this process under a debugger or anywhere."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from harness.config.plan.plan import ResolvedArm
from harness.config.plan.rungs import Look, steps_of_looks
from harness.engine.early_stopping import Decisions, looks_at, up_to
from harness.engine.stages.context import Context
from harness.engine.stages.datasets import ensure_dataset
from harness.engine.stages.sampling import ensure_all_images, missing_images
from harness.engine.stages.scoring import ensure_scores, missing_metrics
from harness.engine.stages.training import ensure_checkpoints, missing_checkpoints
from harness.engine.tasks import Task, task_of
from harness.errors import HarnessError
from harness.store.artifact import explaining_lack_of_room


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a task ended. `reason` is one line, null when it completed.

    `reasons` are those of single runs, where the others of the task completed.
    """

    task: Task
    reason: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """True where there is a reason."""
        return self.reason is not None

    @property
    def blames_nobody(self) -> bool:
        """True where several runs failed together: whose fault it was shows when each is alone."""
        return self.failed and not self.reasons and len(self.task.runs) > 1


def perform(task: Task, ctx: Context) -> dict[str, HarnessError]:
    """Make sure of everything a task names; gives the runs that could not be trained, with reasons."""
    with explaining_lack_of_room(ctx.workspace.root):
        for dataset_id in task.datasets:
            ctx.go_on()
            ctx.step(f"dataset {dataset_id}")
            ensure_dataset(ctx, dataset_id)
        if task.runs:
            ctx.step(f"training {' '.join(task.runs)}")
        failed = ensure_checkpoints(ctx, task.runs)
        asked = [(ctx.plan.arms[arm_id], split) for arm_id, split in task.arms]
        drawable = [
            (arm, split)
            for arm, split in asked
            if not any(adapter.run_id in failed for adapter in arm.adapters)
        ]
        ctx.step(f"images of {len(drawable)} draws")
        ensure_all_images(ctx, [(arm, ctx.plan.cells(arm, split)) for arm, split in drawable])
        for arm, split in drawable:
            ctx.go_on()
            ctx.step(f"scores of draw {arm.arm_id}, {split}")
            ensure_scores(ctx, arm)
            if split == "dev" and (ended := ctx.plan.trials_ending_with[arm.arm_id]):
                ctx.report("trials", ended)
    return failed


Tell = Callable[[Sequence[Look]], Collection[str]]  # gives the ids of the runs that are stopped there


def climb(task: Task, ctx: Context, tell: Tell) -> dict[str, HarnessError]:
    """Perform a task, telling what its training runs have come to at each look of the scheduler.

    All that go on are trained together to their next look, or to their end where none is left. What ends
    there is drawn and scored before the looks are told, in the order of the task's runs.
    """
    looks = {run_id: steps_of_looks(ctx.plan, run_id) for run_id in task.runs}
    going, arms = list(task.runs), list(task.arms)
    reached: dict[str, float] = {}
    failed: dict[str, HarnessError] = {}
    for step in [*sorted({step for steps in looks.values() for step in steps}), math.inf]:
        due = [run_id for run_id in going if step in looks[run_id]]
        ending = [run_id for run_id in going if all(look < step for look in looks[run_id])]
        reached |= {**dict.fromkeys(due, step), **dict.fromkeys(ending, math.inf)}
        ready = [pair for pair in arms if _is_ready(task, ctx.plan.arms[pair[0]], reached)]
        arms = [pair for pair in arms if pair not in ready]
        so_far = up_to(ctx, due, int(step)) if due else ctx
        lost = perform(replace(task, runs=(*due, *ending), arms=tuple(ready)), so_far)
        failed |= lost
        reached |= dict.fromkeys(lost, 0)  # so that nothing more is drawn with it
        told = [run_id for run_id in due if run_id not in lost]
        ctx.step(f"looks at step {step:g}")
        stopped = tell(looks_at(so_far, told, int(step))) if told else ()
        going = [run_id for run_id in going if not (run_id in ending or run_id in lost or run_id in stopped)]
    return failed


def _is_ready(task: Task, arm: ResolvedArm, reached: Mapping[str, float]) -> bool:
    """True once the task's runs have come as far as the draw's adapters."""
    return all(
        (adapter.steps or 0) <= reached.get(adapter.run_id, 0)
        for adapter in arm.adapters
        if adapter.run_id in task.runs
    )


Performing = Callable[[Task, Context], dict[str, HarnessError]]


def attempt(task: Task, ctx: Context, perform: Performing = perform) -> Outcome:
    """Perform a task and say how it ended; what no retry can mend is an outcome, all else is raised."""
    try:
        failed = perform(task, ctx)
    except HarnessError as error:
        return Outcome(task=task, reason=str(error))
    reasons = {run_id: str(error) for run_id, error in failed.items()}
    return Outcome(task=task, reason="; ".join(reasons.values()) or None, reasons=reasons)


def satisfied(task: Task, ctx: Context) -> bool:
    """True when the store has all that a task names, so that no worker need be started for it."""
    plan, workspace = ctx.plan, ctx.workspace
    return (
        all(workspace.dataset(dataset_id).done for dataset_id in task.datasets)
        and not any(missing_checkpoints(workspace, plan.runs[run_id]) for run_id in task.runs)
        and not any(
            missing_images(ctx, plan.arms[arm_id], plan.cells(plan.arms[arm_id], split))
            or any(missing_metrics(ctx, chunk) for chunk in workspace.image_chunks(arm_id))
            for arm_id, split in task.arms
        )
    )


def settled(run_id: str, ctx: Context, decisions: Decisions) -> bool:
    """True where a run was stopped, or has gone through all its looks and has all that it needs."""
    if run_id in decisions.stops:
        return True
    looks = steps_of_looks(ctx.plan, run_id)
    task = task_of(ctx.plan, [ctx.plan.runs[run_id]])
    return all(decisions.of(run_id, step) for step in looks) and satisfied(task, ctx)


def failures(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The reason of each failed task, by the run and the draws it was to make."""
    found: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.reasons:
            found |= outcome.reasons
        elif outcome.reason is not None:
            concerned = (*outcome.task.runs, *(arm_id for arm_id, _ in outcome.task.arms))
            found |= dict.fromkeys(concerned, outcome.reason)
    return found


class Executor(Protocol):
    """Spreads tasks over workers: one outcome per task, in order; one that fails loses no other."""

    def workers(self, ctx: Context) -> int:
        """How many tasks it can carry out side by side."""
        ...

    def run(self, tasks: Sequence[Task], ctx: Context) -> list[Outcome]:
        """Perform all tasks and wait for them. Progress goes to `bench.report`, in this process."""
        ...

    def race(self, tasks: Sequence[Task], ctx: Context, decisions: Decisions) -> list[Outcome]:
        """Perform tasks of training runs, look by look (`climb`), under the sweep's scheduler.

        What it decides is added to `decisions`; a run that is stopped has not failed.
        """
        ...


Announce = Callable[[str, Sequence[Task], Context], None]
