"""Nodes and workers that are lost, on a real cluster: the sweep ends as if nothing had happened."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import results
from harness.config.plan.plan import Plan
from harness.results import Results
from harness.store.workspace import BEGUN, Workspace
from tests.engine.executors.carrying import assert_same
from tests.engine.executors.disturbing import carried_out
from tests.engine.executors.nodes import Nodes, cluster, once

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with cluster(tmp_path_factory.mktemp("nodes")) as started:
        started.join()
        yield started


def run(sweep: Path, workspace: Path, *more: str) -> Results:
    """On the cluster, by a process of its own: one that had another Ray before cannot join this one."""
    done = carried_out(sweep, workspace, *more)
    assert done.returncode == 0, done.stderr
    return results.load(workspace / "sweeps" / "small")


def counted(found: Results) -> dict[str, int]:
    """What befell the sweep, as its report has it."""
    return {row["what"]: row["count"] for row in found.sweep["events"]}


def test_a_node_lost_in_training_while_another_joins(
    long_sweep: Path, long_plan: Plan, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)

    def replace_it() -> bool:
        nodes.started[0].lose()
        nodes.join()
        return True

    with once(lambda: any(workspace.checkpoints(run_id) for run_id in long_plan.runs), replace_it) as done:
        disturbed = run(long_sweep, tmp_path, "--set", "compute.max_failures=0")
    assert done, "no node was lost, so this shows nothing"
    assert_same(disturbed, undisturbed)
    befell = counted(disturbed)
    assert befell.pop("tried again") == 1
    assert befell in ({"node lost": 1}, {"worker lost": 1}), "Ray may not know yet that the node is gone"
    resumed = [
        artifact.manifest()["facts"]["from_step"]
        for run_id in long_plan.runs
        for artifact in workspace.checkpoints(run_id).values()
    ]
    assert max(resumed) > 0, "training began anew instead of going on from a checkpoint"


def generating(workspace: Workspace) -> bool:
    """Dataset and texts are there, and what is begun is named by an id alone: a chunk of images."""
    there = [any(workspace.root.glob(f"{kind}/manifest.json")) for kind in ("datasets/*", "texts/*/*")]
    begun = (path.name for path in workspace.root.glob(f"sweeps/*/{BEGUN}/*"))
    return all(there) and any(re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{8}", name) for name in begun)


def scoring(workspace: Workspace) -> bool:
    """All images of the control are there, and no score."""
    images = len(list(workspace.root.glob("images/*/*/manifest.json")))
    return images >= 6 and not any(workspace.root.glob("scores/*/*/manifest.json"))


@pytest.mark.parametrize("during", [generating, scoring])
def test_a_worker_killed(
    during: Callable[[Workspace], bool], long_sweep: Path, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    with once(lambda: during(workspace), nodes.kill_workers) as done:
        disturbed = run(long_sweep, tmp_path)
    assert done, "no worker was killed, so this shows nothing"
    assert_same(disturbed, undisturbed)
    assert counted(disturbed)["worker lost"] == counted(disturbed)["tried again"] == 1
    with workspace.drive("small"):
        assert not list(tmp_path.glob(f"sweeps/*/{BEGUN}/*")), "the next driver clears what was begun"
