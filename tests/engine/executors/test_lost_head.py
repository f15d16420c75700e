"""The head of a cluster is killed and the cluster built anew: one line, and the same command goes on."""

import time
from pathlib import Path

import pytest

from harness import results
from harness.results import Results
from tests.engine.executors.carrying import assert_same
from tests.engine.executors.disturbing import carried_out
from tests.engine.executors.nodes import cluster, once

pytestmark = pytest.mark.slow


def test_a_lost_head_is_told_and_on_a_new_cluster_the_sweep_goes_on(
    long_sweep: Path, undisturbed: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "w"

    def begun() -> bool:
        return any(root.glob("adapters/*/steps-*/manifest.json"))

    lost_at: list[float] = []
    with cluster(tmp_path) as nodes:
        nodes.join()

        def lose_the_head() -> bool:
            nodes.head.lose()
            lost_at.append(time.monotonic())
            return True

        with once(begun, lose_the_head) as done, monkeypatch.context() as patch:
            patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "12")
            told = carried_out(long_sweep, root)
            took = time.monotonic() - lost_at[0] if lost_at else 0.0
    assert done, "the head was not killed, so this shows nothing"
    assert took < 120, "Ray waits for 12 s"
    assert told.returncode == 1 and "Traceback" not in told.stderr
    (line,) = [line for line in told.stderr.splitlines() if "Failed to connect to GCS" in line]
    assert line.endswith("The program will terminate.")
    assert told.stderr.splitlines()[-1] == line
    with cluster(tmp_path) as nodes:
        nodes.join()
        again = carried_out(long_sweep, root)
    assert again.returncode == 0, again.stderr
    found = results.load(root / "sweeps/small")
    assert_same(found, undisturbed)
    assert "driver lost" in [row["what"] for row in found.sweep["events"]]
