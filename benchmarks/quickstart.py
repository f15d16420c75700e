"""The quickstart's 8 trials against the naive way, in one run: `python -m benchmarks.quickstart`.

With `--sweep benchmarks/sixteen.yaml` the 16 trials of that sweep, which are trained in packs.

The naive way is one process per trial, one after the other, each in a store of its own with nothing in it: it
makes its training images, trains its own steps, trains and draws its own controls, draws and scores. It is
`harness trial` on a sweep of that trial alone, so each of these is as fast as the harness makes it. The
harness's way is `harness run`, which also draws the test images, tests, and writes the report.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.machine import print_table
from benchmarks.many import QUICKSTART

HARNESS = (sys.executable, "-c", "from harness.cli.main import main; main()")


def trials(sweep: Path) -> list[list[str]]:
    """What `--set` changes so that each trial is a sweep of its own."""
    axes: dict[str, list[Any]] = yaml.safe_load(sweep.read_text())["axes"]
    return [
        [
            f"axes.{name}={yaml.safe_dump([value], default_flow_style=True, width=10_000).strip()}"
            for name, value in zip(axes, values, strict=True)
        ]
        for values in itertools.product(*axes.values())
    ]


def naive(sweep: Path, changes: Sequence[str], folder: Path) -> float:
    """Seconds of all trials, each in a process and a store of its own."""
    started = time.monotonic()
    for number, own in enumerate(trials(sweep)):
        _call("trial", str(sweep), "0", "-w", str(folder / f"naive-{number}"), *_sets([*own, *changes]))
    return time.monotonic() - started


def shared(sweep: Path, changes: Sequence[str], folder: Path) -> float:
    """Seconds of the sweep."""
    started = time.monotonic()
    _call("run", str(sweep), "-w", str(folder / "harness"), *_sets(changes))
    return time.monotonic() - started


def _sets(changes: Sequence[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def _call(*words: str) -> None:
    subprocess.run([*HARNESS, *words], check=True, capture_output=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", action="append", default=[], help="as of harness run, for a smaller one")
    parser.add_argument("--sweep", type=Path, default=QUICKSTART, help="another sweep")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = {
            "one process per trial": naive(given.sweep, given.set, Path(folder)),
            "harness": shared(given.sweep, given.set, Path(folder)),
        }
    plain = seconds["one process per trial"]
    rows = [
        {"way": way, "s": f"{spent:.0f}", "times as fast": f"{plain / spent:.2f}"}
        for way, spent in seconds.items()
    ]
    print(f"load {os.getloadavg()[0]:.1f}")
    print_table(rows, device=torch.device("cpu"))


if __name__ == "__main__":
    main()
