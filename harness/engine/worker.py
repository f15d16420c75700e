"""Runs one task: a plain function of the task and a store, in this process under a debugger or anywhere."""

import math
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from harness.config.plan.plan import TrainingRun
from harness.config.plan.rungs import IntermediateResult
from harness.engine.early_stopping import rung_results
from harness.engine.outcomes import Outcome, failure
from harness.engine.stages.context import Context
from harness.engine.stages.datasets import make_dataset, make_parts
from harness.engine.stages.encodings import make_latents, make_texts
from harness.engine.stages.sampling import make_images
from harness.engine.stages.scoring import make_scores
from harness.engine.stages.training import make_checkpoints
from harness.engine.tasks import (
    DatasetTask,
    ImagesTask,
    PartsTask,
    Task,
    TextsTask,
    TrainingTask,
    checkpoint_name,
)
from harness.errors import DamagedArtifact, HarnessError
from harness.store.artifact import explaining_lack_of_room

Tell = Callable[[Sequence[IntermediateResult]], Collection[str]]  # gives the ids of the runs that are stopped


def run_task(task: Task, ctx: Context, tell: Tell | None = None) -> dict[str, HarnessError]:
    """Make what a task names, unless it is there; returns the errors of the runs that could not be trained.

    `tell` takes what racing runs report at a rung. Raises DamagedArtifact if something that it reads was.
    """
    with explaining_lack_of_room(ctx.workspace.root):
        ctx.go_on()
        ctx.step(task.name)
        match task:
            case PartsTask(dataset=dataset, parts=parts):
                make_parts(ctx, dataset, parts)
            case DatasetTask(dataset=dataset, views=views):
                make_dataset(ctx, dataset)
                for view in views:
                    make_latents(ctx, dataset, view)
            case TextsTask(model=model, texts=texts):
                make_texts(ctx, model, texts)
            case TrainingTask():
                return _train(task, ctx, tell)
            case ImagesTask(wanted=wanted, metrics=metrics):
                make_images(ctx, wanted)
                ctx.step(f"scores of {task.name}")
                make_scores(ctx, wanted, metrics)
    return {}


def _train(task: TrainingTask, ctx: Context, tell: Tell | None) -> dict[str, HarnessError]:
    """Train a pack. All that go on are trained together to their next rung, or to their end.

    Intermediate results are told in the order of the task's runs.
    """
    if tell is None or not task.rungs:
        return make_checkpoints(ctx, task.runs)
    rungs = {(rung.run_id, rung.step): rung for rung in task.rungs}
    going, failed = list(task.runs), dict[str, HarnessError]()
    for step in [*sorted({step for _, step in rungs}), math.inf]:
        due = [run for run in going if (run.run_id, step) in rungs]
        ending = [
            run for run in going if all(other < step for run_id, other in rungs if run_id == run.run_id)
        ]
        ctx.step(f"{task.name} to step {step:g}")
        lost = make_checkpoints(ctx, [*(_up_to(run, int(step)) for run in due), *ending])
        failed |= lost
        reporting = [rungs[run.run_id, int(step)] for run in due if run.run_id not in lost]
        stopped = tell(rung_results(ctx, reporting)) if reporting else ()
        ended = {run.run_id for run in ending} | lost.keys() | {*stopped}
        going = [run for run in going if run.run_id not in ended]
    return failed


def _up_to(run: TrainingRun, step: int) -> TrainingRun:
    """The run with its checkpoints up to a rung, and one there."""
    return replace(run, checkpoints=tuple(sorted({step, *(n for n in run.checkpoints if n < step)})))


def attempt(task: Task, ctx: Context, tell: Tell | None = None) -> Outcome:
    """Run a task and say how it ended; what a retry may mend on another worker is raised."""
    try:
        failed = run_task(task, ctx, tell)
    except DamagedArtifact as error:
        return failure(task, str(error), again=True)
    except HarnessError as error:
        return failure(task, str(error))
    reasons = {run_id: str(error) for run_id, error in failed.items()}
    reason = "; ".join(reasons.values()) or None
    return Outcome(task=task, reason=reason, reasons=reasons, lost=_lost(task, ctx))


def _lost(task: Task, ctx: Context) -> frozenset[str]:
    """The checkpoints that a pack did not make, as its runs failed or were stopped."""
    if not isinstance(task, TrainingTask):
        return frozenset()
    return frozenset(
        checkpoint_name(run.run_id, steps)
        for run in task.runs
        for steps in run.checkpoints
        if not ctx.workspace.checkpoint(run.run_id, steps).done
    )


CGROUP_QUOTAS = (  # version 2: quota and period in one file; version 1: in two
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def usable_cpus(quotas: Sequence[Sequence[str]] = CGROUP_QUOTAS) -> int:
    """How many CPUs this process may use: by its affinity (`taskset`, `srun -c`) and its cgroup's quota."""
    room = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for files in quotas:
        with suppress(OSError, ValueError):
            quota, period = " ".join(Path(file).read_text() for file in files).split()
            if quota not in ("max", "-1"):
                room = min(room, int(quota) / int(period))
    return max(1, int(room))
