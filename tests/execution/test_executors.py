"""Every executor: one outcome per task, in order; a failure loses no other."""

import threading
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from harness.execution import ExecutorName, make_executor
from harness.models.spec import SdxlModel
from harness.pipeline import Task, control_tasks
from harness.spec.expand import Plan
from harness.stages import Bench
from harness.workspace import Workspace
from tests.sweeps import small_plan

EXECUTORS = get_args(ExecutorName)


class Display:
    """Counts what is reported; like a live display it holds a lock, so it cannot leave its process."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lock = threading.RLock()

    def report(self, kind: str, count: int) -> None:
        with self.lock:
            self.counts[kind] += count


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SdxlModel, tiny_clip: str) -> Plan:
    return small_plan(tmp_path_factory.mktemp("sweep"), tiny_spec, tiny_clip)


@pytest.mark.parametrize("name", EXECUTORS)
def test_outcomes_are_in_order_and_a_failure_loses_no_other(
    name: ExecutorName, plan: Plan, tmp_path: Path
) -> None:
    good = control_tasks(plan)[:1]
    impossible = Task(name="impossible", runs=("no such run",))  # an unforeseen error: KeyError in the worker
    display = Display()
    bench = Bench(plan=plan, workspace=Workspace(tmp_path), report=display.report)
    outcomes = make_executor(name).run([impossible, *good], bench)
    assert [outcome.task for outcome in outcomes] == [impossible, *good]
    assert outcomes[0].reason is not None and "no such run" in outcomes[0].reason
    assert outcomes[1].reason is None
    assert Workspace(tmp_path).dataset(good[0].datasets[0]).done
    assert display.counts == {"dataset_pictures": 4}
