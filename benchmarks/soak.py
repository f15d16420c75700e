"""A sweep under fire: workers, nodes and drivers are killed at random, and nothing is lost or done twice.

    python -m benchmarks.soak --minutes 30

Sixty short trials on the embedded model, on Ray nodes of this machine that are processes of their own. When a
sweep is finished before the time is up, another begins in a fresh workspace. Needs the `test` extra.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import yaml

from benchmarks.machine import print_table
from harness import results
from tests.engine.executors.nodes import Nodes, cluster

NODES = 3
STEPS, EVERY = 20, 4
TRIALS = 60
PAUSE_SECONDS = 30.0, 75.0  # between two kills: a worker takes a while to start on a busy machine
SWEEP = {
    "name": "soak",
    "question": "Is anything lost or done twice when workers, nodes and drivers are killed?",
    "model": {"kind": "emoji"},
    "recipe": {"kind": "degrade", "count": 4, "degradations": ["blur"], "prompts": ["a cat", "a rose"]},
    "training": {"steps": STEPS, "batch_size": 1, "learning_rate": 1.0e-3},
    "axes": {
        "adapter.rank": [1, 2, 3, 4, 6, 8],
        "training.learning_rate": [1.0e-4, 2.0e-4, 5.0e-4, 1.0e-3, 2.0e-3],
        "training.seed": [0, 1],
    },
    "arms": [
        {"name": "placebo", "negative": "wrong"},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
    ],
    "prompts": [{"text": "a cat on grass", "split": "dev"}, {"text": "a house at night", "split": "test"}],
    "seeds": [0, 1],
    "sampler": {"steps": 4, "guidance": 2.0, "refiner_start": 0.75},
    "metrics": [{"kind": "aesthetic", "encoder": "emoji", "head": "emoji"}, "saturation"],
    "analysis": {"primary": "aesthetic", "control": "placebo", "resamples": 200},
    # Every checkpoint is kept, so that all that was trained is on record.
    "compute": {"checkpoint_every": EVERY, "keep_checkpoints": 1000, "max_failures": 3, "pack": "off"},
}


class Soak:
    """One sweep after the other on one cluster, until the time is up."""

    def __init__(self, folder: Path, nodes: Nodes, *, seed: int, minutes: float) -> None:
        """Kills are drawn from the seed; when they fall depends on the machine."""
        self.folder, self.nodes = folder, nodes
        self.dice = random.Random(seed)
        self.ends_at = time.monotonic() + minutes * 60
        self.next_kill = time.monotonic() + self.dice.uniform(*PAUSE_SECONDS)
        self.kills: Counter[str] = Counter()
        self.drivers = 0

    def fire(self, driver: "subprocess.Popen[bytes]") -> None:
        """Kill something, where it is time to."""
        if not self.ends_at > time.monotonic() > self.next_kill:
            return
        (what,) = self.dice.choices(["worker", "node", "driver"], weights=[6, 2, 1])
        if what == "worker":
            workers = [worker for node in self.nodes.started for worker in node.workers()]
            if not workers:
                return
            with suppress(psutil.NoSuchProcess):
                self.dice.choice(workers).kill()
        elif what == "node":
            node = self.dice.choice(self.nodes.started)
            node.lose()
            self.nodes.started.remove(node)
            self.nodes.join()
        else:
            driver.kill()
        self.kills[what] += 1
        self.next_kill = time.monotonic() + self.dice.uniform(*PAUSE_SECONDS)

    def sweep(self, root: Path) -> None:
        """Drive the sweep to its end, starting a driver again whenever one ended early."""
        log = self.folder / f"{root.name}.log"
        for _ in range(200):
            self.drivers += 1
            with log.open("ab") as file:
                driver = subprocess.Popen(command(self.folder, root), stdout=file, stderr=file)
            while driver.poll() is None:
                self.fire(driver)
                time.sleep(0.2)
            if driver.returncode == 0:
                return
        raise SystemExit(f"200 drivers did not finish the sweep; see {log}")


def command(folder: Path, root: Path, *more: str) -> list[str]:
    """The sweep, carried out."""
    harness = Path(sys.executable).with_name("harness")
    return [str(harness), "run", str(folder / "soak.yaml"), "-w", str(root), *more]


def checked(root: Path, undisturbed: results.Results) -> dict[str, str]:
    """A row of the table about a sweep that was under fire. AssertionError where something is amiss."""
    found = results.load(root / "sweeps/soak")
    assert list(found.trials["status"]) == TRIALS * ["completed"], found.trials["status"].value_counts()
    by = ["image_id", "metric"]
    these, those = (r.scores.sort_values(by, ignore_index=True) for r in (found, undisturbed))
    pd.testing.assert_frame_equal(these, those, rtol=1e-6, atol=1e-6)
    images = len(list(root.glob("images/*/*/*.png")))
    assert images == found.images["image_id"].nunique() == len(found.images), "an image was drawn twice"
    trained, calls = 0, 0
    for run in root.glob("adapters/*"):
        starts = {
            int(file.parent.name.removeprefix("steps-")): json.loads(file.read_text())["facts"]["from_step"]
            for file in run.glob("steps-*/manifest.json")
        }
        assert sorted(starts) == list(range(EVERY, STEPS + 1, EVERY)), f"{run}: {sorted(starts)}"
        for step, start in starts.items():
            went_on = start == starts.get(step - EVERY)  # the call that saved the checkpoint before this one
            assert went_on or start == step - EVERY, f"{run}: {step} was not trained from the last checkpoint"
            trained += EVERY
            calls += not went_on
    assert not list(root.glob("*/*/.tmp-*")), "something that was begun is left over"
    return {
        "trials": f"{len(found.trials)}",
        "steps on record": f"{trained} of {TRIALS * STEPS} asked",
        "training calls": f"{calls}",
        "images": f"{images}",
        "events": "; ".join(f"{row['what']} {row['count']}" for row in found.sweep["events"]),
    }


def main() -> None:
    """Soak, check, print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=30.0)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--folder", type=Path, help="default: a temporary one")
    asked = arguments.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    print(f"logs and workspaces: {folder}", file=sys.stderr)
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as each worker has: else sums round otherwise
    undisturbed_run = command(folder, folder / "undisturbed", "--executor", "local")
    subprocess.run(undisturbed_run, check=True, env=one_thread)
    undisturbed = results.load(folder / "undisturbed/sweeps/soak")
    with cluster(folder) as nodes:
        for _ in range(NODES):
            nodes.join()
        soak = Soak(folder, nodes, seed=asked.seed, minutes=asked.minutes)
        rows: list[dict[str, str]] = []
        while not rows or time.monotonic() < soak.ends_at:
            root = folder / f"sweep-{len(rows)}"
            soak.sweep(root)
            rows.append(checked(root, undisturbed))
    print_table(rows, device=None)
    print(f"\nkilled: {dict(soak.kills)}; drivers started: {soak.drivers}")


if __name__ == "__main__":
    main()
