"""Clusters as they are: nodes of different kinds, a clock that is wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness import results
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import expand
from harness.results import Results
from harness.store.workspace import Workspace
from tests.engine.executors.carrying import assert_same
from tests.engine.executors.disturbing import CHANGES, HARNESS, carried_out
from tests.engine.executors.nodes import RAY, Node, Nodes, cluster, free_port, once

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hours_ahead(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a node is started with so that its clock is five hours ahead."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("clock") / "hours_ahead.so"
    source = Path(__file__).with_name("hours_ahead.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"SECONDS_AHEAD": str(5 * 3600), "LD_PRELOAD": str(library)}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, hours_ahead: dict[str, str]) -> Iterator[Nodes]:
    with cluster(tmp_path_factory.mktemp("nodes")) as started:
        started.join('--resources={"apple": 1}', "--num-gpus=1")
        started.join('--resources={"pear": 1}', unseen=None, **hours_ahead)
        yield started


def test_trials_run_where_their_resource_is_whatever_time_it_is_there(
    long_sweep: Path, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    """The node with pears is five hours ahead of the driver."""
    apple, pear = nodes.started
    with once(apple.workers, lambda: True) as elsewhere, once(pear.workers, lambda: True) as there:
        done = carried_out(long_sweep, tmp_path, "--set", "compute.resources={pear: 0.5}")
    assert done.returncode == 0, done.stderr
    assert there and not elsewhere
    found = results.load(tmp_path / "sweeps/small")
    assert_same(found, undisturbed)
    manifests = [json.loads(file.read_text()) for file in tmp_path.glob("*/*/*/manifest.json")]
    finished = [datetime.fromisoformat(manifest["finished_at"]) for manifest in manifests]
    assert min(finished) > datetime.now(UTC) + timedelta(hours=4), "its clock was right: this shows nothing"
    assert all(0 <= manifest["seconds"] < 600 for manifest in manifests)
    assert found.trials["train_seconds"].between(0, 600).all()
    assert found.images["generation_seconds"].between(0, 600).all()
    assert datetime.fromisoformat(found.sweep["finished_at"]) < datetime.now(UTC)
    listed = subprocess.run([HARNESS, "store", "ls", "-w", tmp_path], capture_output=True, text=True)
    assert listed.returncode == 0 and "-" not in listed.stdout.replace("--", ""), listed.stdout
    again = carried_out(long_sweep, tmp_path)
    assert "Nothing to train, generate or score" in again.stdout


def test_so_many_runs_share_a_gpu_as_fit(long_sweep: Path, nodes: Nodes, tmp_path: Path) -> None:
    """One node says that it has a GPU. Ray counts it; the model trains on its processor."""
    changes = {
        "axes.training.seed": [0, 1, 2],
        "training.steps": 150,
        "compute.pack": "off",
        "compute.max_concurrent": 3,
        "compute.cpus_per_trial": 0.25,
        "compute.gpus_per_trial": 0.5,
    }
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    runs = expand(load_sweep(long_sweep, sets[1::2])).own_runs
    workspace, (_, pear) = Workspace(tmp_path), nodes.started

    def together(count: int) -> bool:
        """So many have begun and are not at their end."""
        steps = (list(workspace.checkpoints(run)) for run in runs)
        return sum(bool(made) and made[-1] < CHANGES["training"]["steps"] for made in steps) >= count

    with (
        once(lambda: together(2), lambda: True) as two,
        once(lambda: together(3), lambda: True) as three,
        once(pear.workers, lambda: True) as without_a_gpu,
    ):
        done = carried_out(long_sweep, tmp_path, *sets)
    assert done.returncode == 0, done.stderr
    assert two and not three and not without_a_gpu
    assert (results.load(tmp_path / "sweeps/small").trials["status"] == "completed").all()


def test_a_resource_that_no_node_has_is_told(long_sweep: Path, nodes: Nodes, tmp_path: Path) -> None:
    told = carried_out(long_sweep, tmp_path, "--address", "auto", "--set", "compute.resources={banana: 1}")
    assert told.returncode == 2 and "Traceback" not in told.stderr
    said = " ".join(told.stderr.split())
    assert "one process of 1 CPU and 0 GPU and 1 banana does not fit into any of the 3 nodes" in said
    assert "1 CPU, 1 pear" in said


CONNECT = """
import sys
import ray
from harness.engine.executors.ray_cluster import connected
with connected(sys.argv[1]):
    print("answered", ray.get(ray.remote(lambda: 5).remote()))
"""


def test_the_token_in_the_home_folder_is_sent_to_a_cluster_that_asks_for_one(tmp_path: Path) -> None:
    at_home = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=at_home, capture_output=True)
    assert (tmp_path / ".ray" / "auth_token").is_file()
    address = f"127.0.0.1:{(port := free_port())}"
    head = Node(
        "--head",
        f"--port={port}",
        "--node-ip-address=127.0.0.1",
        "--num-cpus=1",
        "--include-dashboard=false",
        log=tmp_path / "head.log",
        RAY_AUTH_MODE="token",
        HOME=str(tmp_path),
    )
    try:
        plain = {name: value for name, value in at_home.items() if not name.startswith("RAY_AUTH")}
        command = [sys.executable, "-c", CONNECT, address]
        with_it = subprocess.run(command, env=plain, capture_output=True, text=True)
        assert "answered 5" in with_it.stdout, with_it.stderr
        (tmp_path / ".ray" / "auth_token").unlink()
        without = subprocess.run(command, env=plain, capture_output=True, text=True)
        assert "set RAY_AUTH_TOKEN" in without.stderr
    finally:
        head.lose()
