"""How soon a worker can begin with its second trial, against its first: `python -m benchmarks.warm_worker`.

Two controls of the quickstart are drawn by one worker of Ray Tune. What is compared is the time until it has
its model: the first from when Ray is asked for, the second from when the first has its scores.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import print_table
from benchmarks.many import QUICKSTART, overrides
from benchmarks.watched import WatchedBench
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import expand
from harness.engine.executors import make_executor
from harness.engine.tasks import Task
from harness.store.artifact import MANIFEST
from harness.store.workspace import Workspace

ONE_AT_A_TIME = "compute.max_concurrent=1"


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Seconds until a worker has its model: of its first trial, and of its second."""

    cold: float
    warm: float


def measure(folder: Path) -> Starts:
    """Draw two controls in an empty store."""
    plan = expand(load_sweep(QUICKSTART, [*overrides(name="warm", seeds=1, prompts=1), ONE_AT_A_TIME]))
    workspace, notes = Workspace(folder / "workspace"), folder / "notes"
    ctx = WatchedBench(plan=plan, workspace=workspace, report=lambda kind, count: None, notes=notes)
    first, second = (arm.arm_id for arm in plan.control_arms[:2])
    tasks = [Task(name=arm_id, arms=((arm_id, "dev"),)) for arm_id in (first, second)]
    asked = time.time()
    with make_executor("ray") as executor:
        outcomes = executor.run(tasks, ctx)
    assert not any(outcome.failed for outcome in outcomes), outcomes
    cold, warm = map(json.loads, notes.read_text().splitlines())
    assert cold["process"] == warm["process"], "two workers"
    scored = max(file.stat().st_mtime for file in workspace.root.glob(f"scores/*/{first}-*/{MANIFEST}"))
    return Starts(cold=cold["at"] - asked, warm=warm["at"] - scored)


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        starts = measure(Path(folder))
    row = {"cold, s": f"{starts.cold:.2f}", "warm, s": f"{starts.warm:.3f}"}
    print(f"load {os.getloadavg()[0]:.1f}")
    print_table([row | {"share": f"{100 * starts.warm / starts.cold:.1f} %"}], device=torch.device("cpu"))


if __name__ == "__main__":
    main()
