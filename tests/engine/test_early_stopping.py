"""What was decided of a sweep's runs, and what is then left of its plan."""

from pathlib import Path
from typing import Any

import pytest

from harness.config.plan.plan import Plan, expand
from harness.config.plan.rungs import IntermediateResult, rung_steps
from harness.config.schema.search import AshaScheduler, MedianScheduler
from harness.engine.accounting.inventory import RUNGS, inventory, rungs, total, training_steps
from harness.engine.early_stopping import Decision, Decisions, as_decided
from harness.store.workspace import Workspace
from tests.config.example import load

ASHA = {"kind": "asha", "grace": 25, "reduction_factor": 2, "objective": {"kind": "contrast", "prompts": 1}}


def planned(folder: Path, **scheduler: Any) -> Plan:
    return expand(load(folder, scheduler={**ASHA, **scheduler}))


def decided(plan: Plan, folder: Path, *, step: int) -> Decisions:
    """The first trial's run stopped at this step."""
    decisions = Decisions(plan.sweep, Workspace(folder))
    Workspace(folder).sweep(plan.sweep.name).mkdir(parents=True, exist_ok=True)
    result = IntermediateResult(run_id=str(plan.trials[0].run_id), step=step, value=-0.5)
    decisions.add(Decision(result=result, stopped=True))
    return decisions


def test_looks_are_before_the_end() -> None:
    assert AshaScheduler(kind="asha", grace=10, reduction_factor=3).rungs(100) == (10, 30, 90)
    assert AshaScheduler(kind="asha", grace=10, reduction_factor=3).rungs(90) == (10, 30)
    assert AshaScheduler(kind="asha", grace=4, reduction_factor=1.1).rungs(8) == (4, 5, 6, 7)
    assert MedianScheduler(kind="median", grace=10, every=20).rungs(50) == (10, 30)


def test_only_trials_own_runs_are_looked_at(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert {run_id for run_id in plan.runs if rung_steps(plan, run_id)} == plan.own_runs
    assert len(plan.runs) > len(plan.own_runs)  # there are shams


@pytest.mark.parametrize(("step", "left"), [(25, [2, 3]), (100, [0, 2, 3])])
def test_what_was_stopped_and_what_it_alone_needs_is_not_left(
    tmp_path: Path, step: int, left: list[int]
) -> None:
    plan = planned(tmp_path)
    kept = as_decided(plan, decided(plan, tmp_path, step=step))
    assert [trial.index for trial in kept.trials] == left
    stopped = kept.runs[str(plan.trials[0].run_id)]
    assert stopped.checkpoints == ((25,) if step == 25 else (100,))
    assert stopped.training == plan.runs[stopped.run_id].training
    needed = {arm_id for trial in kept.trials for arm_id in trial.arms.values()}
    assert set(kept.arms) == needed
    shams = [run for run_id, run in kept.runs.items() if run_id not in plan.own_runs]
    assert sorted(run.checkpoints for run in shams) == ([(100, 200)] if step == 25 else [(100,), (100, 200)])


def test_decisions_are_read_again_and_only_under_the_same_rules(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    decisions = decided(plan, tmp_path, step=25)
    store = Workspace(tmp_path)
    assert Decisions(plan.sweep, store).made == decisions.made
    assert Decisions(planned(tmp_path, grace=20).sweep, store).made == {}
    assert Decisions(load(tmp_path, scheduler={"kind": "fifo"}), store).stops == {}
    assert Decisions(load(tmp_path, scheduler=ASHA, sampler={"steps": 9}), store).made == {}
    more = load(tmp_path, scheduler=ASHA, axes={"adapter.rank": [2, 8, 16], "training.steps": [100, 400]})
    assert Decisions(more, store).made == decisions.made


def test_what_is_counted_is_what_is_left(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    store = Workspace(tmp_path)
    counts = inventory(plan, store)
    assert counts[RUNGS].asked == 2 * 2  # runs × rungs at 25 and 50 steps; at 100 they are a trial's own
    assert counts["training steps"].missing == 4 * 200
    left = as_decided(plan, decided(plan, tmp_path, step=25))
    counts = inventory(left, store)
    assert counts[RUNGS].asked == 2
    assert counts["training steps"].missing == 25 + 200 + 200
    assert total(training_steps(store, run) for run in left.runs.values()).asked == 25 + 200 + 200
    assert rungs(left, store, str(plan.trials[0].run_id)).asked == 0
