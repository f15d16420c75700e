"""Nodes and workers that are lost, on a real cluster: the sweep ends as if nothing had happened."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import results
from harness.models.spec import SdxlModel
from harness.results import Results
from harness.spec.expand import Plan, expand
from harness.spec.load import load_sweep
from harness.workspace import Workspace
from tests.execution.carrying import assert_same, carry_out
from tests.execution.nodes import Nodes, cluster, once
from tests.sweeps import write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with cluster(tmp_path_factory.mktemp("nodes")) as started:
        started.join()
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SdxlModel, tiny_clip: str) -> Path:
    training = {"learning_rate": 0.01, "batch_size": 2, "steps": 60}
    arms = [{"name": "placebo", "negative": "wrong"}, {"name": "lora", "negative": "wrong", "adapters": [{}]}]
    compute = {"checkpoint_every": 5, "batch_size": 1}
    changes = {"training": training, "axes": {}, "arms": arms, "compute": compute}
    return write_sweep(tmp_path_factory.mktemp("sweep") / "small.yaml", tiny_spec, tiny_clip, **changes)


@pytest.fixture(scope="module")
def plan(file: Path) -> Plan:
    return expand(load_sweep(file))


def run(file: Path, workspace: Path, *more: str) -> Results:
    """On the cluster, by a process of its own: one that had another Ray before cannot join this one."""
    command = [
        str(part) for part in (Path(sys.executable).with_name("harness"), "run", file, "-w", workspace, *more)
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return results.load(workspace / "sweeps" / "small")


def counted(found: Results) -> dict[str, int]:
    """What befell the sweep, as its report has it."""
    return {row["what"]: row["count"] for row in found.sweep["events"]}


@pytest.fixture(scope="module")
def undisturbed(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Results:
    import torch

    torch.set_num_threads(1)  # as the workers have
    return carry_out(plan, tmp_path_factory.mktemp("undisturbed"), "local").results


def test_a_node_lost_in_training_while_another_joins(
    file: Path, plan: Plan, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)

    def replace_it() -> bool:
        nodes.started[0].lose()
        nodes.join()
        return True

    with once(lambda: any(workspace.snapshots(run_id) for run_id in plan.runs), replace_it) as done:
        disturbed = run(file, tmp_path, "--set", "compute.max_failures=0")
    assert done, "no node was lost, so this shows nothing"
    assert_same(disturbed, undisturbed)
    befell = counted(disturbed)
    assert befell.pop("tried again") == 1
    assert befell in ({"node lost": 1}, {"worker lost": 1}), "Ray may not know yet that the node is gone"
    resumed = [
        stage.manifest()["facts"]["from_step"]
        for run_id in plan.runs
        for stage in workspace.snapshots(run_id).values()
    ]
    assert max(resumed) > 0, "training began anew instead of going on from a checkpoint"


def drawing(workspace: Workspace) -> bool:
    return any(workspace.root.glob("images/*/.tmp-*"))


def scoring(workspace: Workspace) -> bool:
    """All pictures of the first control are there, and no score is."""
    drawn = len(list(workspace.root.glob("images/*/*/manifest.json"))) == 3
    return drawn and not drawing(workspace) and not any(workspace.root.glob("scores/*/*/manifest.json"))


@pytest.mark.parametrize("during", [drawing, scoring])
def test_a_worker_killed(
    during: Callable[[Workspace], bool], file: Path, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    with once(lambda: during(workspace), nodes.kill_workers) as done:
        disturbed = run(file, tmp_path)
    assert done, "no worker was killed, so this shows nothing"
    assert_same(disturbed, undisturbed)
    assert counted(disturbed)["worker lost"] == counted(disturbed)["tried again"] == 1
    assert not list(tmp_path.glob("*/*/.tmp-*")), "what the killed worker had begun is cleared away"
