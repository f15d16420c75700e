"""Runs that are stopped early: a small sweep of them, and a race of it in this process."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

from harness.config.plan.plan import Plan
from harness.config.plan.rungs import IntermediateResult, Rung
from harness.config.schema.model import SdxlModel
from harness.engine.executors.ray_scheduler import RUNGS, Scheduler
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.queue import Queue
from harness.engine.stages.context import Context
from harness.engine.tasks import TrainingTask
from harness.engine.worker import attempt
from tests.engine.executors.carrying import Display
from tests.sweeps.small import small_plan

RATES = [0.3, 3.0, 0.1]
LOSSES = {0.3: 1.0, 3.0: 2.0, 0.1: 3.0, 0.12: 4.0}  # what runs are made to report, for a clear order
ASHA = {"kind": "asha", "grace": 2, "reduction_factor": 2, "objective": {"kind": "validation_loss"}}
MEDIAN = {
    "kind": "median",
    "grace": 1,
    "every": 1,
    "min_runs": 1,
    "objective": {"kind": "validation_loss"},
}
ALONE, PACKED = ({"batch_size": 1, "checkpoint_every": 2, "pack": pack} for pack in ("off", "auto"))
ARMS = [
    {"name": "placebo", "negative": "wrong"},
    {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
]


class OneAfterTheOther:
    """Runs tasks here, and asks the pruner as Tune would; `rungs`: ended by Ctrl-C after so many."""

    def __init__(self, rungs: int | None = None) -> None:
        self.rungs, self.raced, self.told = rungs, list[str](), list[list[str]]()
        self._answers: dict[tuple[str, int], bool] = {}

    def workers(self, ctx: Context) -> int:
        return 1

    def carry_out(self, queue: Queue, ctx: Context) -> None:
        scheduler = Scheduler(lambda: queue.race, self._answers.update)
        while not queue.finished:
            while (task := queue.next()) is not None:
                if isinstance(task, TrainingTask) and task.rungs:
                    self.raced += [run.run_id for run in task.runs]
                queue.done(attempt(task, ctx, partial(self._tell, scheduler)))

    def _tell(self, scheduler: Scheduler, results: Sequence[IntermediateResult]) -> list[str]:
        if self.rungs == 0:
            raise KeyboardInterrupt
        self.rungs = None if self.rungs is None else self.rungs - 1
        self.told.append([result.run_id for result in results])
        assert scheduler.on_trial_result(None, None, told(*results)) == Scheduler.CONTINUE
        return [one.run_id for one in results if self._answers[one.run_id, one.step]]


def told(*results: IntermediateResult) -> dict[str, Any]:
    """What a worker reports of them."""
    return {RUNGS: [astuple(result) for result in results]}


def racing_plan(folder: Path, model: SdxlModel, clip: str, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "training": {"batch_size": 2, "steps": 5, "holdout": 1},
        "axes": {"training.learning_rate": RATES, "training.steps": [2, 5]},
        "arms": ARMS,
        "scheduler": ASHA,
        "compute": ALONE,
        **changes,
    }
    return small_plan(folder, model, clip, **settings)


def carry_out(plan: Plan, root: Path, executor: OneAfterTheOther) -> tuple[SweepRun, Counter[str]]:
    display = Display()
    ctx = Context.of(plan, root, display.report)
    done = run_sweep(plan, ctx, executor, announce=lambda *_: None, publish=lambda _: False)
    return done, display.counts


def set_values(ctx: Context, rungs: Sequence[Rung]) -> list[IntermediateResult]:
    """Stands in for `rung_results`: the tiny model's own losses hardly differ."""
    results = []
    for rung in rungs:
        checkpoint = ctx.workspace.checkpoint(rung.run_id, rung.step)
        rate = checkpoint.manifest()["facts"]["run"]["training"]["learning_rate"]
        results.append(IntermediateResult(run_id=rung.run_id, step=rung.step, value=LOSSES[rate]))
    return results
