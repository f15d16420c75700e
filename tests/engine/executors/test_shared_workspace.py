"""Nodes that do not see the same folders: a workspace in one is refused, one in a bucket is carried out."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import results
from harness.results import Results
from harness.store.workspace import Workspace
from tests.engine.executors.carrying import assert_same
from tests.engine.executors.disturbing import carried_out, command
from tests.engine.executors.nodes import Nodes, cluster, once
from tests.limits import HANGS
from tests.store import server

pytestmark = pytest.mark.slow


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """A folder that is another one for the second node."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("not allowed to make a mount namespace")
    folder = tmp_path / "of one machine"
    folder.mkdir()
    return folder


@pytest.fixture
def nodes(tmp_path: Path, unseen: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("HARNESS_CACHE", str(unseen))
    with cluster(tmp_path) as started:
        started.join()
        started.join(unseen=unseen)
        yield started


def test_a_workspace_of_one_machine_is_refused_and_one_in_a_bucket_survives_a_killed_worker(
    nodes: Nodes, unseen: Path, s3: str, s3_endpoint: str, long_sweep: Path, undisturbed: Results
) -> None:
    refused = carried_out(long_sweep, unseen / "w", timeout=HANGS)
    assert refused.returncode == 2, refused.stderr
    said = " ".join(refused.stderr.split())
    assert "does not see what this machine writes into --workspace" in said and "s3://" in said
    assert not list((unseen / "w").glob("datasets/*")), "something was made before the refusal"

    bucket = s3.removeprefix("s3://")

    def training() -> bool:
        time.sleep(0.5)
        made = server.objects(s3_endpoint, f"{bucket}/adapters")
        return any(name.endswith("manifest.json") for name in made)

    with once(training, nodes.kill_workers) as killed:
        run = command("run", long_sweep, s3)
        driver = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not killed and driver.poll() is None:
            time.sleep(0.1)
        second = carried_out(long_sweep, s3, timeout=HANGS)
        out, err = driver.communicate(timeout=HANGS)
    assert killed and driver.returncode == 0, err
    assert second.returncode == 2 and "is being run by another process" in " ".join(second.stderr.split())
    assert f"page    {s3}/sweeps/small/report.html" in out
    assert_same(results.load(f"{s3}/sweeps/small"), undisturbed)
    manifests = [
        artifact.manifest()
        for run in undisturbed.trials["run_id"]
        for artifact in Workspace(s3).checkpoints(run).values()
    ]
    assert len(manifests) >= 2 and max(manifest["facts"]["from_step"] for manifest in manifests) > 0
