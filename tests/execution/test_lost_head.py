"""The head of a cluster is killed and the cluster built anew: one line, and the same command goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import results
from harness.models.spec import SdxlModel
from tests.execution.carrying import assert_same, carry_out
from tests.execution.nodes import cluster, once
from tests.sweeps import small_plan, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ARMS = [{"name": "placebo", "negative": "wrong"}, {"name": "lora", "negative": "wrong", "adapters": [{}]}]
CHANGES = {
    "training": {"learning_rate": 0.01, "batch_size": 2, "steps": 60},
    "axes": {},
    "arms": ARMS,
    "compute": {"checkpoint_every": 5, "batch_size": 1},
}


def test_a_lost_head_is_told_and_on_a_new_cluster_the_sweep_goes_on(
    tmp_path: Path,
    tiny_spec: SdxlModel,
    tiny_clip: str,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "12")
    file = write_sweep(tmp_path / "small.yaml", tiny_spec, tiny_clip, **CHANGES)
    root = tmp_path / "w"
    command = [str(Path(sys.executable).with_name("harness")), "run", str(file), "-w", str(root)]

    def begun() -> bool:
        return any(root.glob("adapters/*/steps-*/manifest.json"))

    with cluster(tmp_path) as nodes:
        nodes.join()

        def lose_the_head() -> bool:
            nodes.head.lose()
            return True

        with once(begun, lose_the_head) as done:
            told = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done, "the head was not killed, so this shows nothing"
    assert told.returncode == 1 and "Traceback" not in told.stderr
    (line,) = [line for line in told.stderr.splitlines() if "error:" in line]
    assert "does not answer any more" in line and "the same command goes on" in line
    with cluster(tmp_path) as nodes:
        nodes.join()
        again = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert again.returncode == 0, again.stderr
    plan = small_plan(tmp_path, tiny_spec, tiny_clip, **CHANGES)
    undisturbed = carry_out(plan, tmp_path / "undisturbed", "local")
    found = results.load(root / "sweeps/small")
    assert_same(found, undisturbed.results)
    assert "driver lost" in [row["what"] for row in found.sweep["events"]]
