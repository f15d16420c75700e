"""Clusters as they are: nodes of different kinds, a clock that is wrong, a way in for clients alone."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness import cli, results
from harness.results import Results
from harness.spec.expand import Plan, expand
from harness.spec.load import load_sweep
from harness.workspace import Workspace
from tests.execution.carrying import assert_same
from tests.execution.disturbing import HARNESS, begin, carried_out, command, stopped_by_ctrl_c
from tests.execution.nodes import Nodes, cluster, once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


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
    assert found.images["draw_seconds"].between(0, 600).all()
    assert datetime.fromisoformat(found.sweep["finished_at"]) < datetime.now(UTC)
    listed = subprocess.run([HARNESS, "store", "ls", "-w", tmp_path], capture_output=True, text=True)
    assert listed.returncode == 0 and "-" not in listed.stdout.replace("--", ""), listed.stdout
    again = carried_out(long_sweep, tmp_path)
    assert "Nothing to train, draw or score" in again.stdout


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
        return sum(workspace.claimed("run", run) for run in runs) >= count

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


def test_through_the_client_port_one_drives_ctrl_c_stops_and_the_same_command_goes_on(
    long_sweep: Path, long_plan: Plan, undisturbed: Results, nodes: Nodes, tmp_path: Path
) -> None:
    workspace, (run_id,) = Workspace(tmp_path), long_plan.runs
    rarely = ("--set", "compute.checkpoint_every=1000")  # what is kept is kept because of the Ctrl-C
    given = command("run", long_sweep, tmp_path, "--address", nodes.client_address, *rarely)
    with workspace.drive("small"):
        refused = subprocess.run(given, capture_output=True, text=True, timeout=300)
    with workspace.claim("run", run_id):  # nobody trains until the second driver is through
        driver = begin(given, (tmp_path / "sweeps/small/plan.json").is_file)
        second = carried_out(long_sweep, tmp_path)
        while not list(tmp_path.glob("datasets/*/manifest.json")):
            assert driver.poll() is None
            time.sleep(0.01)
    for told in (refused, second):
        assert told.returncode == 2 and "Traceback" not in told.stderr
        assert "is being run by another process" in " ".join(told.stderr.split())
    while not workspace.claimed("run", run_id):
        assert driver.poll() is None
        time.sleep(0.01)
    step = stopped_by_ctrl_c(driver, given, tmp_path)
    done = subprocess.run(given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "pictures 4/4" in done.stderr, "the progress is shown here"
    assert f"report  {tmp_path}/sweeps/small/report.html" in done.stdout.replace("\n", "")
    assert workspace.snapshot(run_id, 150).manifest()["facts"]["from_step"] == step
    found = results.load(tmp_path / "sweeps/small")
    assert_same(found, undisturbed)
    assert [(row["what"], row["count"]) for row in found.sweep["events"]] == [("stopped", 1)]


def test_a_folder_of_this_machine_is_none_of_the_clusters(
    long_sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", command("run", long_sweep, "here", "--address", "ray://127.0.0.1:1"))
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "it is a folder of the cluster's" in " ".join(capsys.readouterr().err.split())
