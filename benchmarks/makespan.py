"""How long a sweep of a thousand trials takes on 1 to 512 GPUs, by a model of the engine (`simulation.py`).

`python -m benchmarks.makespan`. The tasks, their order and their sizes are those that the engine would
dispatch: the plan of `sweeps/sdxl_wrong.yaml` with 56 training seeds, on an empty store. What a unit of work
takes is assumed (`Assumed`), or with `--timings WORKSPACE` read from the manifests of a store with the like.
Efficiency is against a lower bound: all work over all GPUs, or the longest chain that cannot be shared.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.machine import print_table
from benchmarks.simulation import Cluster, Item, Job, Simulation, lower_bound
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import Plan, expand
from harness.engine.accounting.estimate import Rates, Reckoning, Work, past_timings
from harness.engine.stages.context import Context
from harness.engine.stages.datasets import PART
from harness.engine.tasks import Task, shared_out
from harness.store.workspace import SHARES, Workspace

SWEEP = Path(__file__).parents[1] / "sweeps" / "sdxl_wrong.yaml"
SEEDS = 56  # × 18 = 1,008 trials
GPUS = (1, 8, 64, 512)
CHUNK = 8  # images that are kept together
Rate = Callable[[Work], float]  # seconds of one unit


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """Seconds. One H100 with SDXL at 1024 px in half precision; nodes as large clusters report them."""

    training_pass: float = 0.2  # a row forwards and backwards is three; SimpleTuner: 0.606 a step at batch 1
    drawing_pass: float = 0.045  # a row forwards, in batches of 8: 30 steps with guidance are 2.7 s
    worker_start: float = 60.0  # imports, and loading base, refiner and scorer
    dispatch: float = 0.1  # Tune's driver, per task: measured by `benchmarks.overhead`, rounded up
    node_lives: float = 1000 * 3600.0  # mean, of a node of 8 GPUs
    node_away: float = 600.0


def jobs_of(ctx: Context, rate: Rate, *, gpus: int) -> list[list[Job]]:
    """The tasks of each stage, in the order of dispatch to so many workers."""
    plan = ctx.plan
    reckoning = Reckoning(ctx, finished=False)
    keep = plan.sweep.compute.checkpoint_every

    def item(task: Task, name: str) -> Item:
        (work,) = reckoning.works(task)
        unit = rate(work)
        grain = keep if task.runs else CHUNK
        workers = 1
        if task.datasets:
            workers = math.ceil(work.missing / PART)
        elif task.arms:
            workers = min(SHARES, work.missing)
        return Item(name=name, seconds=work.missing * unit, grain=grain * unit, workers=workers)

    def dataset(dataset_id: str) -> Item:
        return item(Task(name="", datasets=(dataset_id,)), dataset_id)

    def run(run_id: str) -> Item:
        return item(Task(name="", runs=(run_id,)), run_id)

    def job(task: Task) -> Job:
        drawn_with = [
            adapter.run_id
            for arm_id, _ in task.arms
            for adapter in plan.arms[arm_id].adapters
            if adapter.run_id is not None and adapter.run_id not in task.runs
        ]
        learnt_from = [one.dataset_id for run_id in task.runs for one in plan.runs[run_id].datasets]
        return Job(
            needs=(*map(dataset, dict.fromkeys(learnt_from)), *map(run, dict.fromkeys(drawn_with))),
            makes=(
                *map(dataset, task.datasets),
                *map(run, task.runs),
                *(item(Task(name="", arms=(arm,)), " ".join(arm)) for arm in task.arms),
            ),
        )

    return [[job(task) for task in shared_out(tasks, plan, workers=gpus)] for tasks in reckoning.artifacts()]


def assumed_rate(costs: Assumed) -> Rate:
    """What a unit takes by its passes through the UNet."""

    def seconds(work: Work) -> float:
        one = costs.training_pass if work.row == "training steps" else costs.drawing_pass
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


def simulated(artifacts: Sequence[Sequence[Job]], cluster: Cluster, seed: int = 0) -> tuple[float, int]:
    """Seconds to the end, and how many nodes were lost meanwhile."""
    simulation = Simulation(cluster, seed=seed)
    for jobs in artifacts:
        simulation.run(jobs)
    return simulation.now, simulation.lost_nodes


def as_rows(stages_for: Callable[[int], Sequence[Sequence[Job]]], costs: Assumed) -> list[dict[str, str]]:
    """The table: without failures, with them, and with nodes that live a hundredth as long."""
    rows = []
    for gpus in GPUS:
        artifacts = stages_for(gpus)
        bound = lower_bound(artifacts, gpus)
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
            seconds, lost = simulated(artifacts, cluster)
            row |= {name: _hours(seconds), f"{name}: efficiency": f"{100 * bound / seconds:.1f} %"}
            if node_lives is not None:
                row[f"{name}: nodes lost"] = f"{lost}"
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
        ctx = Context(plan=plan, workspace=Workspace(nothing), report=lambda kind, count: None)
        artifacts = jobs_of(ctx, rate, gpus=1)
        rows = as_rows(lambda gpus: jobs_of(ctx, rate, gpus=gpus), costs)
    work = sum({item.name: item.seconds for jobs in artifacts for job in jobs for item in job.items}.values())
    print(f"{len(plan.trials)} trials, {len(plan.runs)} runs, {sum(map(len, artifacts))} tasks,")
    print(f"{work / 3600:.0f} GPU-hours; assumed seconds: ")
    print(", ".join(f"{field.name} {getattr(costs, field.name):g}" for field in fields(costs)))
    print_table(rows, device=None)


if __name__ == "__main__":
    main()
