"""Every executor: one outcome per task, in order; a failure loses no other; a killed worker is no loss."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import ray

from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.engine.executors import ExecutorName, make_executor
from harness.engine.stages.context import Context
from harness.engine.tasks import Task, control_tasks
from harness.results import Results
from harness.store.workspace import Workspace
from tests.engine.executors.carrying import Display, assert_same, carry_out
from tests.limits import HANGS
from tests.sweeps.small import small_plan

EXECUTORS = get_args(ExecutorName)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_config: SdxlModel, tiny_clip: str) -> Plan:
    compute = {"batch_size": 1, "checkpoint_every": 2, "pack": "off"}  # on any processor the same bytes
    return small_plan(tmp_path_factory.mktemp("sweep"), tiny_config, tiny_clip, compute=compute)


@pytest.mark.parametrize("name", EXECUTORS)
def test_outcomes_are_in_order_and_a_failure_loses_no_other(
    name: ExecutorName, plan: Plan, tmp_path: Path
) -> None:
    good = control_tasks(plan)[:1]
    impossible = Task(name="impossible", runs=("no such run",))  # an unforeseen error: KeyError in the worker
    display = Display()
    ctx = Context(plan=plan, workspace=Workspace(tmp_path), report=display.report)
    with make_executor(name) as executor:
        outcomes = executor.run([impossible, *good], ctx)
    assert [outcome.task for outcome in outcomes] == [impossible, *good]
    assert outcomes[0].reason is not None and "no such run" in outcomes[0].reason
    assert outcomes[1].reason is None
    assert Workspace(tmp_path).dataset(good[0].datasets[0]).done
    assert display.counts["dataset_images"] == 4


@pytest.mark.slow
def test_ray_and_the_loop_make_the_same_images_and_scores(
    plan: Plan, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = carry_out(plan, tmp_path / "local", "local")
    starts: list[dict[str, Any]] = []
    start = ray.init

    def counted(**how: Any) -> Any:
        starts.append(how)
        return start(**how)

    monkeypatch.setattr(ray, "init", counted)
    through_ray = carry_out(plan, tmp_path / "ray", "ray")
    assert len(starts) == 1, "one Ray for the trials and for the confirmation"
    assert not ray.is_initialized()
    assert not [outcome for outcome in through_ray.outcomes if outcome.failed]
    assert_same(through_ray.results, local.results)


@pytest.mark.slow
def test_a_killed_worker_is_no_loss(
    tmp_path: Path, long_plan: Plan, undisturbed: Results, one_thread: None
) -> None:
    killed: list[int] = []
    workspace = Workspace(tmp_path / "disturbed")
    killer = threading.Thread(target=kill_a_worker_in_training, args=(workspace, long_plan, killed))
    killer.start()
    disturbed = carry_out(long_plan, workspace.root, "ray")
    killer.join()
    assert killed, "no worker was killed, so this shows nothing"
    assert not [outcome for outcome in disturbed.outcomes if outcome.failed]
    assert_same(disturbed.results, undisturbed)


def kill_a_worker_in_training(workspace: Workspace, plan: Plan, killed: list[int]) -> None:
    """Kill -9 the worker that trains, once its run has its first checkpoint."""
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline and not killed:
        if any(workspace.checkpoints(run_id) for run_id in plan.runs):
            for child in psutil.Process().children(recursive=True):
                if "ImplicitFunc" in " ".join(child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
        time.sleep(0.02)
