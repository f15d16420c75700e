"""A sweep that takes long enough to be disturbed, and a driver of it in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli import ctrl_c
from tests.limits import HANGS

HARNESS = str(Path(sys.executable).with_name("harness"))
CHANGES: dict[str, Any] = {
    "training": {"learning_rate": 0.01, "batch_size": 2, "steps": 150},
    "axes": {},
    "arms": [
        {"name": "placebo", "negative": "wrong"},
        {"name": "lora", "negative": "wrong", "adapters": [{}]},
    ],
    "compute": {"checkpoint_every": 5, "batch_size": 1, "max_concurrent": 1},
}


def command(verb: str, sweep: Path, workspace: Path | str, *more: str) -> list[str]:
    """`harness VERB SWEEP.yaml`."""
    return [HARNESS, verb, str(sweep), *more, "-w", str(workspace)]


def carried_out(
    sweep: Path, workspace: Path | str, *more: str, timeout: float = HANGS
) -> "subprocess.CompletedProcess[str]":
    """The whole of `harness run`."""
    run = command("run", sweep, workspace, *more)
    return subprocess.run(run, capture_output=True, text=True, timeout=timeout)


def begin(command: list[str], until: Callable[[], object]) -> "subprocess.Popen[str]":
    """Start it, and come back when the condition holds."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends Ctrl-C to all processes of the command
        preexec_fn=ctrl_c.heard,
    )
    deadline = time.monotonic() + HANGS
    while not until():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def press_ctrl_c(process: "subprocess.Popen[str]") -> None:
    """As in its terminal."""
    os.killpg(process.pid, signal.SIGINT)


def stopped(
    process: "subprocess.Popen[str]", command: list[str], workspace: Path, *, by: signal.Signals
) -> int:
    """Stop it while the one run is trained: it is told how to go on. The step of the checkpoint kept.

    Ctrl-C reaches all processes of the command; Slurm, Kubernetes and `timeout` end the driver alone.
    """
    if by is signal.SIGINT:
        press_ctrl_c(process)
    else:
        process.send_signal(by)
    _, said = process.communicate(timeout=HANGS)
    assert process.returncode == 128 + by and "Traceback" not in said
    said = " ".join(said.split())
    assert "Stopping. Waiting for what is under way" in said
    assert f"run the same command to go on: {' '.join(['harness', *command[1:]])}" in said
    step = max(int(kept.name.removeprefix("steps-")) for kept in workspace.glob("adapters/*/steps-*"))
    assert 0 < step < CHANGES["training"]["steps"], (
        "a checkpoint where it was, which is no trial's checkpoint"
    )
    return step
