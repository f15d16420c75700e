"""Every executor: one outcome per task; a failure loses no other; a killed worker is no loss."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import ray

from benchmarks.watched import WatchedContext
from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.engine.executors import ExecutorName, make_executor
from harness.engine.pipeline import run_sweep
from harness.engine.stages.context import Context
from harness.engine.stages.datasets import parts_count
from harness.engine.tasks import PartsTask, Wish, missing_tasks
from harness.results import Results
from harness.store.workspace import Workspace
from tests.engine.executors.carrying import Display, assert_same, carry_out, run_tasks
from tests.limits import HANGS
from tests.sweeps.small import small_plan

EXECUTORS = get_args(ExecutorName)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_config: SdxlModel, tiny_clip: str) -> Plan:
    compute = {"batch_size": 1, "checkpoint_every": 2, "pack": "off"}  # on any processor the same bytes
    return small_plan(tmp_path_factory.mktemp("sweep"), tiny_config, tiny_clip, compute=compute)


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_failure_loses_no_other(name: ExecutorName, plan: Plan, tmp_path: Path) -> None:
    wish = Wish(plan=plan, workers=lambda: 1)
    good = next(task for task in missing_tasks(wish, Workspace(tmp_path)) if isinstance(task, PartsTask))
    nothing: Any = None  # an unforeseen error in the worker: it has no recipe
    impossible = replace(good, name="impossible", makes=("part none 0",), dataset=nothing)
    display = Display()
    ctx = Context.of(plan, tmp_path, display.report)
    with make_executor(name) as executor:
        outcomes = run_tasks([impossible, good], ctx, executor)
    by_name = {outcome.task.name: outcome for outcome in outcomes}
    assert by_name["impossible"].reason is not None and by_name["impossible"].lost == {*impossible.makes}
    assert by_name[good.name].reason is None
    assert all(Workspace(tmp_path).part(good.dataset.dataset_id, part).done for part in good.parts)
    assert display.counts["dataset_images"] == parts_count(good.dataset, good.parts)


def test_keys_of_the_environment_stand_in_no_command_line(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "a-secret-key-of-the-test"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key)
    wish = Wish(plan=plan, workers=lambda: 1)
    task = next(task for task in missing_tasks(wish, Workspace(tmp_path)) if isinstance(task, PartsTask))
    seen: list[list[str]] = []

    def look(*_: Any) -> None:
        seen.append(
            [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or []]
        )

    with make_executor("ray") as executor:
        run_tasks([task], Context.of(plan, tmp_path, look), executor)
        session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert any("ray::" in word for words in seen for word in words), "a worker was there to see"
    assert not [word for words in seen for word in words if key in word]
    assert not [
        file for file in session.glob("logs/**/*") if file.is_file() and key.encode() in file.read_bytes()
    ]


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
def test_workers_and_their_models_are_kept_from_the_first_task_to_the_confirmation(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, one_thread: None
) -> None:
    compute = {"batch_size": 1, "checkpoint_every": 2, "max_concurrent": 2}
    plan = small_plan(tmp_path, tiny_config, tiny_clip, compute=compute)
    announced: list[str] = []
    ctx = WatchedContext.of(plan, tmp_path / "w", Display().report, notes=tmp_path / "notes")
    with make_executor("ray") as executor:
        run = run_sweep(
            plan,
            ctx,
            executor,
            announce=lambda heading, *_: announced.append(heading),
            publish=lambda _: True,
        )
    assert not [outcome for outcome in run.outcomes if outcome.failed]
    assert announced == ["trials", "confirmation"]
    notes = [json.loads(line)["process"] for line in ctx.notes.read_text().splitlines()]
    assert 1 <= len(set(notes)) <= 2 and len(notes) > 4, "one process for each place, for all tasks"


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
