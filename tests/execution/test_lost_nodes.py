"""Nodes and workers that are lost, on a real cluster: the sweep ends as if nothing had happened."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.models.spec import SdxlModel
from harness.results import Results
from harness.spec.expand import Plan
from harness.workspace import Workspace
from tests.execution.carrying import assert_same, carry_out
from tests.execution.nodes import Nodes, cluster, once
from tests.sweeps import small_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with cluster(tmp_path_factory.mktemp("nodes")) as started:
        started.join()
        yield started


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SdxlModel, tiny_clip: str) -> Plan:
    training = {"learning_rate": 0.01, "batch_size": 2, "steps": 60}
    arms = [{"name": "placebo", "negative": "wrong"}, {"name": "lora", "negative": "wrong", "adapters": [{}]}]
    compute = {"checkpoint_every": 5, "batch_size": 2}
    changes = {"training": training, "axes": {}, "arms": arms, "compute": compute}
    return small_plan(tmp_path_factory.mktemp("sweep"), tiny_spec, tiny_clip, **changes)


@pytest.fixture(scope="module")
def undisturbed(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Results:
    import torch

    torch.set_num_threads(1)  # as the workers have
    return carry_out(plan, tmp_path_factory.mktemp("undisturbed"), "local").results


def test_a_node_lost_in_training_while_another_joins(
    plan: Plan, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)

    def replace_it() -> bool:
        nodes.join()
        nodes.started[0].lose()
        return True

    with once(lambda: any(workspace.snapshots(run_id) for run_id in plan.runs), replace_it) as done:
        disturbed = carry_out(plan, tmp_path, "ray")
    assert done, "no node was lost, so this shows nothing"
    assert not [outcome for outcome in disturbed.outcomes if outcome.failed]
    assert_same(disturbed.results, undisturbed)
    resumed = [
        stage.manifest()["facts"]["from_step"]
        for run_id in plan.runs
        for stage in workspace.snapshots(run_id).values()
    ]
    assert max(resumed) > 0, "training began anew instead of going on from a checkpoint"


def drawing(workspace: Workspace) -> bool:
    return any(workspace.root.glob("images/*/.tmp-*"))


def scoring(workspace: Workspace) -> bool:
    """All dev pictures of the first control are there, and no score is."""
    drawn = len(list(workspace.root.glob("images/*/*/manifest.json"))) == 2
    return drawn and not drawing(workspace) and not any(workspace.root.glob("scores/*/*/manifest.json"))


@pytest.mark.parametrize("during", [drawing, scoring])
def test_a_worker_killed(
    during: Callable[[Workspace], bool], plan: Plan, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    with once(lambda: during(workspace), nodes.kill_workers) as done:
        disturbed = carry_out(plan, tmp_path, "ray")
    assert done, "no worker was killed, so this shows nothing"
    assert not [outcome for outcome in disturbed.outcomes if outcome.failed]
    assert_same(disturbed.results, undisturbed)
    assert not list(tmp_path.glob("*/*/.tmp-*")), "what the killed worker had begun is cleared away"
