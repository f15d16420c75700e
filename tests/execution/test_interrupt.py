"""Ctrl-C: what is under way comes to a checkpoint, the same command goes on, a second one stops at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness import results
from harness.models.spec import SdxlModel
from harness.results import Results
from tests.execution.carrying import assert_same, carry_out
from tests.sweeps import small_plan, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ARMS = [{"name": "placebo", "negative": "wrong"}, {"name": "lora", "negative": "wrong", "adapters": [{}]}]
CHANGES = {
    "training": {"learning_rate": 0.01, "batch_size": 2, "steps": 60},
    "axes": {},
    "arms": ARMS,
    # Far apart: what is kept of the training is kept because of the Ctrl-C.
    "compute": {"checkpoint_every": 1000, "batch_size": 1},
}
HARNESS = str(Path(sys.executable).with_name("harness"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SdxlModel, tiny_clip: str) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep") / "small.yaml", tiny_spec, tiny_clip, **CHANGES)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_spec: SdxlModel, tiny_clip: str) -> Results:
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    return carry_out(small_plan(folder, tiny_spec, tiny_clip, **CHANGES), folder / "w", "local").results


def begin(command: list[str], until: Callable[[], object]) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends Ctrl-C to all processes of the command
        # A test runner in the background ignores Ctrl-C, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 200
    while not until():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def press_ctrl_c(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGINT)


def training(root: Path) -> bool:
    """A run has begun: it is held, and its dataset is there."""
    return any(root.glob(".locks/run-*")) and len(list(root.glob("datasets/*/manifest.json"))) == 1


@pytest.mark.parametrize(
    "how", [["run", "--executor", "local"], ["run"], ["trial"]], ids=["local", "ray", "trial"]
)
def test_ctrl_c_stops_at_a_checkpoint_and_the_same_command_goes_on(
    how: list[str], file: Path, undisturbed: Results, tmp_path: Path
) -> None:
    index = ["0"] if how[0] == "trial" else []
    command = [HARNESS, how[0], str(file), *index, *how[1:], "-w", str(tmp_path)]
    process = begin(command, lambda: training(tmp_path))
    press_ctrl_c(process)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in said
    said = " ".join(said.split())
    assert "Stopping. Waiting for what is under way" in said
    assert f"run the same command to go on: {' '.join(['harness', *command[1:]])}" in said
    (kept,) = tmp_path.glob("adapters/*/steps-*")
    step = int(kept.name.removeprefix("steps-"))
    assert 0 < step < 60, "a checkpoint where it was, which is no trial's snapshot"
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    (last,) = tmp_path.glob("adapters/*/steps-000060/manifest.json")
    assert json.loads(last.read_text())["facts"]["from_step"] == step
    again = results.load(tmp_path / "sweeps/small")
    if how[0] == "run":
        assert_same(again, undisturbed)
        assert [(row["what"], row["count"]) for row in again.sweep["events"]] == [("stopped", 1)]
        page = (tmp_path / "sweeps/small/report.html").read_text()
        assert "the sweep was stopped by Ctrl-C: 1 time, last at 20" in page
    else:  # a trial is not confirmed on the test prompts
        both = again.images.merge(undisturbed.images, on="image_id")
        assert len(both) == len(again.images) > 0
        pd.testing.assert_series_equal(both["sha256_x"], both["sha256_y"], check_names=False)


def test_a_second_ctrl_c_stops_at_once(file: Path, tmp_path: Path) -> None:
    command = [HARNESS, "run", str(file), "--executor", "local", "-w", str(tmp_path)]
    process = begin(command, lambda: any(tmp_path.glob("datasets/.tmp-*")))
    press_ctrl_c(process)
    time.sleep(0.05)
    press_ctrl_c(process)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command to go on" in said
    assert not any(tmp_path.glob("datasets/*/manifest.json")), "the first alone lets it be finished"
