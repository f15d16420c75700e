"""Runs that are compared on their way: a small sweep of them, and a race of it in this process."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

from harness.config.plan.plan import Plan
from harness.config.plan.rungs import Look
from harness.config.schema.model import SdxlModel
from harness.engine.early_stopping import Decisions
from harness.engine.executors.ray_scheduler import LOOKS, Judge
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.stages.context import Context
from harness.engine.tasks import Task
from harness.engine.worker import Outcome, attempt, climb
from harness.store.workspace import Workspace
from tests.engine.executors.carrying import Display
from tests.sweeps.small import small_plan

RATES = [0.3, 3.0, 0.1]
LOSSES = {0.3: 1.0, 3.0: 2.0, 0.1: 3.0, 0.12: 4.0}  # what the looks are made to see, for a clear order
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
    """Carries tasks out here, and asks the judge as Tune would; `looks` are ended by Ctrl-C after so many."""

    def __init__(self, looks: int | None = None) -> None:
        self.looks, self.raced, self.told = looks, list[str](), list[list[str]]()

    def workers(self, ctx: Context) -> int:
        return 1

    def run(self, tasks: Sequence[Task], ctx: Context) -> list[Outcome]:
        return [attempt(task, ctx) for task in tasks]

    def race(self, tasks: Sequence[Task], ctx: Context, decisions: Decisions) -> list[Outcome]:
        answers: dict[tuple[str, int], bool] = {}
        judge = Judge(ctx.plan, decisions, answers.update)
        self.raced += [run_id for task in tasks for run_id in task.runs]
        tell = partial(self.tell, judge, answers)
        return [attempt(task, ctx, partial(climb, tell=tell)) for task in tasks]

    def tell(self, judge: Judge, answers: Mapping[tuple[str, int], bool], looks: Sequence[Look]) -> list[str]:
        if self.looks == 0:
            raise KeyboardInterrupt
        self.looks = None if self.looks is None else self.looks - 1
        self.told.append([look.run_id for look in looks])
        assert judge.on_trial_result(None, None, told(*looks)) == Judge.CONTINUE
        return [look.run_id for look in looks if answers[look.run_id, look.step]]


def told(*looks: Look) -> dict[str, Any]:
    """What a worker reports of them."""
    return {LOOKS: [astuple(look) for look in looks]}


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
    ctx = Context(plan=plan, workspace=Workspace(root), report=display.report)
    done = run_sweep(ctx, executor, announce=lambda *_: None, publish=lambda _: False)
    return done, display.counts


def set_values(ctx: Context, run_ids: Sequence[str], step: int) -> list[Look]:
    """Stands in for `looks_at`: the tiny model's own losses hardly differ, and in no order of the rates."""
    rates = {trial.run_id: trial.params["training.learning_rate"] for trial in ctx.plan.trials}
    assert all(Workspace(ctx.workspace.address).checkpoint(run_id, step).done for run_id in run_ids)
    return [Look(run_id=run_id, step=step, value=LOSSES[rates[run_id]]) for run_id in run_ids]
