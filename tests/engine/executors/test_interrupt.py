"""Ctrl-C and SIGTERM: a checkpoint is kept, the same command goes on, a second signal stops at once."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness import results
from harness.results import Results
from harness.store.workspace import BEGUN
from tests.engine.executors.carrying import assert_same, assert_same_scores
from tests.engine.executors.disturbing import begin, command, press_ctrl_c, stopped
from tests.limits import HANGS

pytestmark = pytest.mark.slow
# Once on the way: what is kept after that is kept because of the signal.
ONCE = ("--set", "compute.checkpoint_every=40")


def training(root: Path) -> bool:
    """A run has begun: it has a checkpoint."""
    return any(root.glob("adapters/*/steps-000040/manifest.json"))


@pytest.mark.parametrize(
    ("how", "by"), [("run", signal.SIGINT), ("run", signal.SIGTERM), ("trial", signal.SIGINT)]
)
def test_a_signal_stops_at_a_checkpoint_and_the_same_command_goes_on(
    how: str, by: signal.Signals, long_sweep: Path, undisturbed: Results, tmp_path: Path
) -> None:
    given = command(how, long_sweep, tmp_path, *(["0"] if how == "trial" else []), *ONCE)
    process = begin(given, lambda: training(tmp_path))
    step = stopped(process, given, tmp_path, by=by)
    subprocess.run(given, check=True, capture_output=True, timeout=HANGS)
    (last,) = tmp_path.glob("adapters/*/steps-000150/manifest.json")
    assert json.loads(last.read_text())["facts"]["from_step"] == step
    again = results.load(tmp_path / "sweeps/small")
    if how == "run":
        assert_same(again, undisturbed)
        assert [(row["what"], row["count"]) for row in again.sweep["events"]] == [("stopped", 1)]
        page = (tmp_path / "sweeps/small/report.html").read_text()
        assert "the sweep was stopped by a signal: 1 time, last at 20" in page
    else:  # a trial is not confirmed on the test prompts
        both = again.images.merge(undisturbed.images, on="image_id")
        assert len(both) == len(again.images) > 0
        assert assert_same_scores(again, undisturbed) == len(both)


def test_a_second_ctrl_c_stops_at_once(long_sweep: Path, tmp_path: Path) -> None:
    given = command("run", long_sweep, tmp_path, "--executor", "local")
    process = begin(given, lambda: any(tmp_path.glob(f"sweeps/*/{BEGUN}/*")))
    press_ctrl_c(process)
    time.sleep(0.05)
    press_ctrl_c(process)
    _, said = process.communicate(timeout=HANGS)
    assert process.returncode == 130 and "run the same command to go on" in said
    assert not any(tmp_path.glob("datasets/*/manifest.json")), "the first alone lets it be finished"
