"""What a sweep asks for is counted from the plan and the store, without making anything."""

from pathlib import Path

import pytest

from harness.inventory import Count, confirmation_pictures, inventory, training_steps
from harness.models.spec import SdxlModel
from harness.spec.expand import Plan
from harness.stages import Bench
from harness.workspace import Workspace
from tests.sweeps import small_plan


def ignore(kind: str, count: int) -> None:
    pass


@pytest.fixture
def plan(tmp_path: Path, tiny_spec: SdxlModel, tiny_clip: str) -> Plan:
    return small_plan(tmp_path, tiny_spec, tiny_clip, axes={"training.steps": [100, 200, 400]})


@pytest.fixture
def bench(plan: Plan, tmp_path: Path) -> Bench:
    return Bench(plan=plan, workspace=Workspace(tmp_path / "w"), report=ignore)


def test_an_empty_store_lacks_everything(bench: Bench) -> None:
    counts = {name: (count.asked, count.missing) for name, count in inventory(bench).items()}
    assert counts == {
        "training pictures": (7, 7),
        "training steps": (800, 800),  # the trial's run and its sham's, 400 each
        "control pictures": (12, 12),
        "adapter pictures": (3 * 2 * 4, 3 * 2 * 4),
    }
    assert confirmation_pictures(bench.plan) == 2 * 1 * 2


@pytest.mark.parametrize(
    ("finished", "missing"),
    [([], 400), ([100], 300), ([100, 200], 200), ([400], 200), ([150], 350), ([100, 200, 400], 0)],
)
def test_steps_before_a_finished_checkpoint_are_not_missing(
    finished: list[int], missing: int, bench: Bench
) -> None:
    run = next(iter(bench.plan.runs.values()))
    for steps in finished:
        with bench.workspace.snapshot(run.run_id, steps).build():
            pass
    assert training_steps(bench, run) == Count(asked=400, missing=missing, passes=missing * 2 * 3)
