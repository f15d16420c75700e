"""What the engine costs per trial, against Ray Tune alone on the same machine, in turn: no-op trials.

`python -m benchmarks.overhead`. Each way runs in a process of its own, with a Ray of its own. The harness's
way is the whole of `run_sweep`: a plan of as many training runs, what the store lacks, one Tune trial per
task, tables and report; only the tasks name nothing to make. Tune alone is a no-op function with
`reuse_actors=True`, once as it comes and once with what the harness sets in Tune's environment.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.machine import print_table
from benchmarks.many import QUICKSTART

WAYS = {  # name → what it is called in the table
    "tune": "Tune alone",
    "lean": "Tune alone, with the harness's settings",
    "harness": "harness",
}
RECIPE = "{kind: keywords, keywords: [blurry]}"
ARMS = "[{name: placebo, negative: wrong}, {name: wrong_lora, negative: wrong, adapters: [{scale: 1.0}]}]"
MIB = 2**20
CORES = 2


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way, once. Memory is the driver's, in bytes, at each tenth of the wall's time."""

    seconds: float
    processor: float  # of the driver and all processes of its Ray
    memory: list[int]


def measure(way: str, trials: int) -> Run:
    """Run one way in this process."""
    if way != "tune":
        # Sets, before Ray is imported, what Tune reads from the environment.
        from harness.engine.executors import ray_tune  # noqa: F401
    import ray

    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            "local",
            num_cpus=CORES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
        try:
            with watching() as seen:
                started = time.monotonic()
                if way == "harness":
                    run_harness(trials, Path(folder))
                else:
                    run_tune(trials, Path(folder))
                seconds = time.monotonic() - started
        finally:
            ray.shutdown()
    return Run(seconds=seconds, processor=sum(seen.processor.values()), memory=_tenths(seen.memory))


def run_tune(trials: int, folder: Path) -> None:
    """A Tuner over a no-op function."""
    from ray import tune

    def nothing(config: dict[str, Any]) -> None:
        tune.report({"ended": True})

    tuner = tune.Tuner(
        tune.with_resources(nothing, {"cpu": 1}),
        param_space={"trial": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(name="nothing", storage_path=str(folder), verbose=0),
    )
    assert len(tuner.fit()) == trials


def run_harness(trials: int, folder: Path) -> None:
    """A sweep of as many training runs, whose tasks are emptied when they are dispatched."""
    from harness.config.loading.load import load_sweep
    from harness.config.plan.plan import expand
    from harness.engine.executors.ray_tune import RayTuneExecutor
    from harness.engine.outcomes import Outcome
    from harness.engine.pipeline import run_sweep
    from harness.engine.queue import Queue
    from harness.engine.stages.context import Context
    from harness.engine.tasks import Task
    from harness.reporting.report import write_report
    from harness.results import Results
    from harness.store.workspace import Workspace

    class EmptyTasks(Queue):
        """Hands out tasks of the same names, in which nothing is to be done."""

        full: dict[str, Task]

        def next(self, *, training: bool = True) -> Task | None:
            task = super().next(training=training)
            if task is None:
                return None
            self.full[task.name] = task
            return Task(name=task.name, makes=task.makes)

        def done(self, outcome: Outcome) -> None:
            assert not outcome.failed
            super().done(replace(outcome, task=self.full.pop(outcome.task.name)))

    class Emptied:
        """Dispatches the tasks of the plan with nothing to do in them; what they make is there at once."""

        def workers(self, ctx: Context) -> int:
            return CORES

        def carry_out(self, queue: Queue, ctx: Context) -> None:
            queue.__class__ = EmptyTasks
            assert isinstance(queue, EmptyTasks)
            queue.full = {}
            RayTuneExecutor().carry_out(queue, ctx)

    one_run = [
        "axes.adapter.rank=[2]",
        "axes.training.steps=[100]",
        f"axes.recipe=[{RECIPE}]",
        f"arms={ARMS}",
        "compute.pack=off",  # a task for each
    ]
    plan = expand(load_sweep(QUICKSTART, [*one_run, f"axes.training.seed={list(range(trials))}"]))
    assert len(plan.runs) == trials
    workspace = Workspace(folder)
    ctx = Context.of(plan, workspace.address, lambda kind, count: None)

    def publish(results: Results) -> bool:
        write_report(results, workspace, folder / "report.html")
        return True

    run_sweep(
        plan,
        ctx,
        Emptied(),
        announce=lambda *_: None,
        publish=publish,
    )


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a look every half second has found so far."""

    memory: list[int] = field(default_factory=list)  # of this process
    processor: dict[int, float] = field(
        default_factory=dict
    )  # of it and each process below it, since the start


@contextmanager
def watching() -> Iterator[Seen]:
    """Looks at this process and those below it while the block runs."""
    seen, stop = Seen(), threading.Event()
    before = _processor_seconds()

    def watch() -> None:
        while True:
            last = stop.wait(0.5)
            seen.memory.append(psutil.Process().memory_info().rss)
            seen.processor.update(
                {pid: spent - before.get(pid, 0.0) for pid, spent in _processor_seconds().items()}
            )
            if last:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def _processor_seconds() -> dict[int, float]:
    """By process: this one and its descendants."""
    found = {}
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def _tenths(samples: Sequence[int]) -> list[int]:
    return [samples[place * (len(samples) - 1) // 10] for place in range(11)]


def in_own_process(way: str, trials: int) -> Run:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.overhead", "--way", way, "--trials", str(trials)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    return Run(**json.loads(finished.stdout.splitlines()[-1]))


def as_rows(measured: dict[str, list[Run]], trials: int) -> list[dict[str, str]]:
    """The table; the first way is what the others are compared with."""
    plain = {clock: _median(next(iter(measured.values())), clock) for clock in ("seconds", "processor")}
    rows = []
    for way, runs in measured.items():
        walls = [run.seconds / trials for run in runs]
        wall, processor = _median(runs, "seconds"), _median(runs, "processor")
        memory = runs[-1].memory
        rows.append(
            {
                "way": WAYS[way],
                "s per trial": f"{wall / trials:.4f}",
                "lowest to highest": f"{min(walls):.4f} to {max(walls):.4f}",
                "ratio": f"{wall / plain['seconds']:.2f}",
                "processor s per trial": f"{processor / trials:.4f}",
                "processor ratio": f"{processor / plain['processor']:.2f}",
                "driver's MiB after 2, 5, 8 and 10 tenths": ", ".join(
                    f"{memory[tenth] / MIB:.0f}" for tenth in (2, 5, 8, 10)
                ),
            }
        )
    return rows


def _median(runs: Sequence[Run], clock: str) -> float:
    return statistics.median(getattr(run, clock) for run in runs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help="this one alone, in this process, as JSON")
    given = parser.parse_args()
    if given.way is not None:
        print(json.dumps(vars(measure(given.way, given.trials))))
        return
    measured: dict[str, list[Run]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way, runs in measured.items():
            runs.append(in_own_process(way, given.trials))
    print(f"load at the end: {os.getloadavg()[2]:.1f} over 15 minutes")
    print_table(as_rows(measured, given.trials), device=torch.device("cpu"))


if __name__ == "__main__":
    main()
