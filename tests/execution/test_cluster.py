"""Clusters as they are: nodes of different kinds, a clock that is wrong, a way in for clients alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness import results
from harness.models.spec import SdxlModel
from harness.results import Results
from harness.spec.expand import Plan, expand
from harness.spec.load import load_sweep
from tests.execution.carrying import assert_same, carry_out
from tests.execution.nodes import Nodes, cluster, once
from tests.sweeps import write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ARMS = [{"name": "placebo", "negative": "wrong"}, {"name": "lora", "negative": "wrong", "adapters": [{}]}]
HARNESS = Path(sys.executable).with_name("harness")


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
        started.join('--resources={"apple": 1}')
        started.join('--resources={"pear": 1}', unseen=None, **hours_ahead)
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SdxlModel, tiny_clip: str) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep") / "small.yaml", tiny_spec, tiny_clip, arms=ARMS)


def run(file: Path, workspace: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [str(HARNESS), "run", str(file), "-w", str(workspace), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def plan(file: Path) -> Plan:
    return expand(load_sweep(file))


@pytest.fixture(scope="module")
def undisturbed(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Results:
    import torch

    torch.set_num_threads(1)  # as the workers have
    return carry_out(plan, tmp_path_factory.mktemp("undisturbed"), "local").results


def test_trials_run_where_their_resource_is_whatever_time_it_is_there(
    file: Path, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    """The node with pears is five hours ahead of the driver."""
    apple, pear = nodes.started
    with once(apple.workers, lambda: True) as elsewhere, once(pear.workers, lambda: True) as there:
        done = run(file, tmp_path, "--set", "compute.resources={pear: 0.5}")
    assert done.returncode == 0, done.stderr
    assert there and not elsewhere
    found = results.load(tmp_path / "sweeps/small")
    assert_same(found, undisturbed)
    manifests = [json.loads(file.read_text()) for file in tmp_path.glob("*/*/*/manifest.json")]
    finished = [datetime.fromisoformat(manifest["finished_at"]) for manifest in manifests]
    assert min(finished) > datetime.now(UTC) + timedelta(hours=4), "its clock was right: this shows nothing"
    assert all(0 <= manifest["seconds"] < 600 for manifest in manifests)
    assert found.trials["train_seconds"].between(0, 600).all()
    assert found.images["draw_seconds"].between(0, 600).all()
    assert datetime.fromisoformat(found.sweep["finished_at"]) < datetime.now(UTC)
    listed = subprocess.run([HARNESS, "store", "ls", "-w", tmp_path], capture_output=True, text=True)
    assert listed.returncode == 0 and "-" not in listed.stdout.replace("--", ""), listed.stdout
    again = run(file, tmp_path)
    assert "Nothing to train, draw or score" in again.stdout


def test_a_resource_that_no_node_has_is_told(file: Path, nodes: Nodes, tmp_path: Path) -> None:
    told = run(file, tmp_path, "--set", "compute.resources={banana: 1}")
    assert told.returncode == 2 and "Traceback" not in told.stderr
    said = " ".join(told.stderr.split())
    assert "one process of 1 CPU and 0 GPU and 1 banana does not fit into any of the 3 nodes" in said
    assert "1 CPU, 1 pear" in said


def test_a_cluster_driven_through_its_client_port(
    file: Path, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    done = run(file, tmp_path, "--address", nodes.client_address)
    assert done.returncode == 0, done.stderr
    assert "pictures 14/14" in done.stderr, "the progress is shown here"
    assert f"report  {tmp_path}/sweeps/small/report.html" in done.stdout.replace("\n", "")
    assert_same(results.load(tmp_path / "sweeps/small"), undisturbed)


def test_errors_of_a_driver_elsewhere_are_told_here(file: Path, nodes: Nodes, tmp_path: Path) -> None:
    client = ("--address", nodes.client_address)
    for told, why in (
        (run(file, tmp_path, *client, "--set", "compute.resources={banana: 1}"), "1 banana does not fit"),
        (run(file, Path("here"), *client), "it is a folder of the cluster's"),
        (run(file, tmp_path, "--address", "ray://127.0.0.1:1"), "no Ray cluster at ray://127.0.0.1:1"),
    ):
        assert told.returncode == 2 and "Traceback" not in told.stderr
        assert why in " ".join(told.stderr.split())
