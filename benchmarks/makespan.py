"""How long a sweep of a thousand trials takes on 1 to 512 GPUs, by a model of workers (`simulation.py`).

`python -m benchmarks.makespan`. The tasks, their order and their sizes are those that the engine would
dispatch: the plan of `sweeps/sdxl_wrong.yaml` with 56 training seeds, on an empty store. What a unit of work
takes is assumed (`Assumed`), or with `--timings WORKSPACE` read from the manifests of a store with the like.
Efficiency is against a lower bound: all work over all GPUs, or the longest chain of tasks.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.machine import print_table
from benchmarks.simulation import Cluster, Cost, Simulation, lower_bound
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import Plan, expand
from harness.engine.accounting.estimate import Rates, Work, past_timings, works_of
from harness.engine.stages.datasets import PART
from harness.engine.tasks import ImagesTask, Task, TrainingTask, Wish, missing_tasks, tested_when_selected
from harness.store.workspace import Workspace

SWEEP = Path(__file__).parents[1] / "sweeps" / "sdxl_wrong.yaml"
SEEDS = 56  # × 18 = 1,008 trials
GPUS = (1, 8, 64, 512)
CHUNK = 8  # images that are kept together
Rate = Callable[[Work], float]  # seconds of one unit


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """Seconds. One H100 with SDXL at 1024 px in half precision; nodes as large clusters report them."""

    training_pass: float = 0.2  # a row forwards and backwards is three; SimpleTuner: 0.606 a step at batch 1
    image_pass: float = 0.045  # a row forwards, in batches of 8: 30 steps with guidance are 2.7 s
    worker_start: float = 60.0  # imports, and loading base, refiner and scorer
    dispatch: float = 0.1  # Tune's driver, per task: measured by `benchmarks.overhead`, rounded up
    node_lives: float = 1000 * 3600.0  # mean, of a node of 8 GPUs
    node_away: float = 600.0


Phases = list[list[Task]]


def phases_of(plan: Plan, workspace: Workspace, *, gpus: int) -> Phases:
    """The tasks of a sweep for so many workers: all before the selection, then a confirmation."""
    tasks = missing_tasks(Wish(plan=plan, workers=lambda: gpus), workspace)
    trial = plan.trials[0]
    arms = tested_when_selected(plan, trial)
    cells = [(arm, cell) for arm in arms for cell in plan.cells(arm, "test")]
    size = max(PART, -(-len(cells) // gpus))
    confirmation: list[Task] = [
        ImagesTask(
            name=f"confirmation {first}",
            makes=(f"images confirmed {first}",),
            wanted=tuple((arm, (cell,)) for arm, cell in cells[first : first + size]),
            metrics=(),
        )
        for first in range(0, len(cells), size)
    ]
    return [tasks, confirmation]


def costs_of(plan: Plan, workspace: Workspace, rate: Rate) -> Callable[[Task], Cost]:
    """What each task takes, and after how much of it a checkpoint or a chunk of images is kept."""
    known: dict[int, tuple[Task, Cost]] = {}  # by the task itself: for other workers it has the same name

    def cost(task: Task) -> Cost:
        if id(task) not in known:
            works = list(works_of(plan, workspace, task))
            kept = plan.sweep.compute.checkpoint_every if isinstance(task, TrainingTask) else CHUNK
            grain = kept * max((rate(work) for work in works), default=1.0)
            seconds = sum(work.missing * rate(work) for work in works)
            known[id(task)] = task, Cost(seconds=seconds, grain=grain or 1.0)
        return known[id(task)][1]

    return cost


def assumed_rate(costs: Assumed) -> Rate:
    """What a unit takes by its passes through the UNet."""

    def seconds(work: Work) -> float:
        one = costs.training_pass if work.row == "training steps" else costs.image_pass
        return one * work.sort.unit_passes

    return seconds


def measured_rate(workspace: Workspace) -> Rate:
    """What a unit took in a store."""
    rates = Rates(past_timings(workspace))

    def seconds(work: Work) -> float:
        rate = rates.of(work.sort)
        assert rate is not None, f"the store has no timings of {work.row} like these: {work.sort}"
        return rate.seconds

    return seconds


def as_rows(
    phases_for: Callable[[int], Phases], cost: Callable[[Task], Cost], costs: Assumed
) -> list[dict[str, str]]:
    """The table: without failures, with them, and with nodes that live a hundredth as long."""
    rows = []
    for gpus in GPUS:
        phases = phases_for(gpus)
        bound = lower_bound(phases, cost, gpus)
        row = {"GPUs": f"{gpus}", "lower bound": _hours(bound)}
        lives = {"no failures": None, "failures": costs.node_lives, "100 × as many": costs.node_lives / 100}
        for name, node_lives in lives.items():
            cluster = Cluster(
                gpus=gpus,
                start=costs.worker_start,
                dispatch=costs.dispatch,
                node_lives=node_lives,
                node_away=costs.node_away,
            )
            simulation = Simulation(phases, cost, cluster)
            seconds = simulation.run()
            row |= {name: _hours(seconds), f"{name}: efficiency": f"{100 * bound / seconds:.1f} %"}
            if node_lives is not None:
                row[f"{name}: nodes lost"] = f"{simulation.lost_nodes}"
        rows.append(row)
    return rows


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h"


def plan_of(seeds: int) -> Plan:
    """The blog's study with this many training seeds, each run alone: what a pack takes is not modelled."""
    return expand(load_sweep(SWEEP, [f"axes.training.seed={list(range(seeds))}", "compute.pack=off"]))


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help="18 trials each")
    parser.add_argument("--timings", type=Path, help="a workspace that says what a unit takes")
    given = parser.parse_args()
    costs = Assumed()
    rate = assumed_rate(costs) if given.timings is None else measured_rate(Workspace(given.timings))
    plan = plan_of(given.seeds)
    with tempfile.TemporaryDirectory() as nothing:
        empty = Workspace(nothing)
        cost = costs_of(plan, empty, rate)
        phases = phases_of(plan, empty, gpus=1)
        rows = as_rows(lambda gpus: phases_of(plan, empty, gpus=gpus), cost, costs)
        work = sum(cost(task).seconds for tasks in phases for task in tasks)
    print(f"{len(plan.trials)} trials, {len(plan.runs)} runs, {sum(map(len, phases))} tasks,")
    print(f"{work / 3600:.0f} GPU-hours; assumed seconds: ")
    print(", ".join(f"{field.name} {getattr(costs, field.name):g}" for field in fields(costs)))
    print_table(rows, device=None)


if __name__ == "__main__":
    main()
