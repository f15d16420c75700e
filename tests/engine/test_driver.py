"""The driver of a sweep: what it does about a pack that fails as a whole, and about damage."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.plan.plan import Plan, expand
from harness.engine.outcomes import Outcome, failure, failures
from harness.engine.pipeline import Driver, write_plan
from harness.engine.queue import Queue, Story
from harness.engine.stages.context import Context
from harness.engine.tasks import DatasetTask, Task, TrainingTask, checkpoint_name
from harness.results import Results
from tests.config.example import load

DIED = "its worker died or was killed"


class Fragile:
    """Loses its worker with every task that trains one certain run, and makes nothing of the others."""

    def __init__(self, guilty: str, *, again: int = 0) -> None:
        self.guilty, self.again, self.given = guilty, again, list[tuple[str, ...]]()

    def workers(self, ctx: Context) -> int:
        return 1

    def carry_out(self, queue: Queue, ctx: Context) -> None:
        while not queue.finished:
            while (task := queue.next()) is not None:
                queue.done(self._run(task, ctx))

    def _run(self, task: Task, ctx: Context) -> Outcome:
        runs = tuple(run.run_id for run in task.runs) if isinstance(task, TrainingTask) else ()
        if runs:
            self.given.append(runs)
        if self.guilty in runs:
            self.again -= 1
            return failure(task, DIED, again=self.again >= 0)
        for run in task.runs if isinstance(task, TrainingTask) else ():
            for steps in run.checkpoints:
                with ctx.workspace.checkpoint(run.run_id, steps).build():
                    pass
        # No image is made here: an arm that failed is left out of the next phase.
        return Outcome(task=task) if runs or isinstance(task, DatasetTask) else failure(task, "not made")


def driven(plan: Plan, root: Path, executor: Fragile) -> Driver:
    """The driver after the first phases of a sweep, without images."""
    ctx = Context.of(plan, root, lambda *_: None)
    write_plan(plan, ctx.workspace)

    def publish(_: Results) -> bool:
        return True

    driver = Driver(plan, ctx, executor, lambda *_: None, publish)

    def story() -> Story:
        yield from driver._carry_out("trials", driver._missing)
        return None

    for dataset_id in plan.datasets:
        with ctx.workspace.dataset(dataset_id).build():
            pass
    executor.carry_out(Queue(story(), ctx.stop), ctx)
    return driver


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return expand(load(tmp_path, axes={"training.learning_rate": [0.1, 0.2, 0.3]}))


def test_of_a_pack_that_is_lost_each_run_is_tried_alone_and_one_alone_fails(
    plan: Plan, tmp_path: Path
) -> None:
    guilty = list(plan.runs)[1]
    executor = Fragile(guilty)
    driver = driven(plan, tmp_path / "w", executor)
    pack = next(runs for runs in executor.given if len(runs) > 1)
    assert sorted(executor.given[1:]) == sorted((run_id,) for run_id in pack)
    found = failures(driver.outcomes)
    assert found[guilty] == DIED and not found.keys() & set(pack) - {guilty}
    assert [(row["what"], row["count"]) for row in driver.events.rows()] == [("tried again", 1)]


def test_what_was_lost_without_fault_is_tried_again(plan: Plan, tmp_path: Path) -> None:
    guilty = list(plan.runs)[1]
    executor = Fragile(guilty, again=2)
    driver = driven(plan, tmp_path / "w", executor)
    assert len([runs for runs in executor.given if guilty in runs]) == 2 + 2, "twice again, the pack, alone"
    assert failures(driver.outcomes)[guilty] == DIED


def test_a_run_with_a_reason_of_its_own_takes_no_other_along(plan: Plan, tmp_path: Path) -> None:
    runs = tuple(plan.runs.values())
    task = TrainingTask(
        name="training",
        runs=runs,
        makes=tuple(checkpoint_name(run.run_id, run.checkpoints[-1]) for run in runs),
    )
    outcome = Outcome(task=task, reason="the loss is NaN", reasons={runs[0].run_id: "the loss is NaN"})
    assert not outcome.retry and failures([outcome]) == {runs[0].run_id: "the loss is NaN"}
    assert replace(outcome, reasons={}).retry
