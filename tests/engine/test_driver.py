"""Who sees to all tasks: what becomes of a pack that fails as a whole."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.config.plan.plan import expand
from harness.engine.early_stopping import Decisions
from harness.engine.pipeline import Driver, write_plan
from harness.engine.stages.context import Context
from harness.engine.tasks import Task, trial_tasks
from harness.engine.worker import Outcome, failures
from harness.store.workspace import Workspace
from tests.config.example import load

DIED = "its worker died or was killed"
ASHA = {"kind": "asha", "grace": 25, "objective": {"kind": "contrast", "prompts": 1}}


class Fragile:
    """Loses its worker with every task that trains one certain run, and makes nothing of the others."""

    def __init__(self, guilty: str) -> None:
        self.guilty, self.given = guilty, list[list[tuple[str, ...]]]()

    def workers(self, ctx: Context) -> int:
        return 1

    def run(self, tasks: Sequence[Task], ctx: Context) -> list[Outcome]:
        self.given.append([task.runs for task in tasks])
        return [Outcome(task=task, reason=DIED if self.guilty in task.runs else None) for task in tasks]

    def race(self, tasks: Sequence[Task], ctx: Context, decisions: Decisions) -> list[Outcome]:
        return self.run(tasks, ctx)


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    plan = expand(load(tmp_path, axes={"training.learning_rate": [0.1, 0.2, 0.3]}, scheduler=ASHA))
    ctx = Context(plan=plan, workspace=Workspace(tmp_path / "w"), report=lambda *_: None)
    write_plan(plan, ctx.workspace)
    return ctx


def test_of_a_pack_that_is_lost_each_run_is_tried_alone_and_one_alone_is_to_blame(ctx: Context) -> None:
    guilty = list(ctx.plan.runs)[1]
    executor = Fragile(guilty)
    driver = Driver(ctx, executor, announce=lambda *_: None)
    (pack,) = trial_tasks(ctx.plan)
    driver.carry_out("trials", [pack], ctx)
    assert executor.given == [[pack.runs], [(run_id,) for run_id in pack.runs]]
    assert [outcome.task.runs for outcome in driver.outcomes] == [(run_id,) for run_id in pack.runs]
    found = failures(driver.outcomes)
    assert found[guilty] == DIED and not found.keys() & set(pack.runs) - {guilty}
    assert [(row["what"], row["count"]) for row in driver.events.rows()] == [("tried again", len(pack.runs))]


def test_what_is_lost_in_a_race_is_tried_alone_and_then_left_out(ctx: Context) -> None:
    guilty = next(iter(ctx.plan.own_runs))
    executor = Fragile(guilty)
    driver = Driver(ctx, executor, announce=lambda *_: None)
    left = driver.race()
    _, raced, alone = executor.given  # the controls come before
    assert [set(runs) for runs in raced] == [set(ctx.plan.own_runs)], "a sham waits for what is left"
    assert {runs for (runs,) in zip(alone, strict=True)} == {(run_id,) for run_id in ctx.plan.own_runs}
    assert guilty not in left.plan.runs and left.plan.runs.keys() >= ctx.plan.own_runs - {guilty}
    assert {trial.run_id for trial in left.plan.trials} == ctx.plan.own_runs - {guilty}


def test_a_run_with_a_reason_of_its_own_takes_no_other_along(ctx: Context) -> None:
    (pack,) = trial_tasks(ctx.plan)
    reasons = {pack.runs[0]: "the loss is NaN"}
    outcome = Outcome(task=pack, reason="the loss is NaN", reasons=reasons)
    driver = Driver(ctx, Fragile("nobody"), announce=lambda *_: None)
    assert driver.note([outcome], ctx.plan) == []
    assert failures(driver.outcomes) == reasons
