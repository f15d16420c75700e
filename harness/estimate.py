"""How long what is missing will take, from the store's past timings: for `harness check --estimate`.

Timings of the same model alone are used: of work just like it (as many denoising steps, the same batch and
adapter) where there are any, else of the like, scaled by passes (`inventory.py`). Where there are none,
nothing is said. Loading models, encoding and scoring are not in it.
"""

import heapq
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import inventory
from harness.bench import Bench
from harness.execution.spec import ComputeSpec
from harness.inventory import Count
from harness.picture_stages import draw_facts, missing_pictures
from harness.probe import probe_cells, probes_of_run
from harness.spec.base import Frozen
from harness.spec.expand import Dataset, Draw, TrainingRun
from harness.spec.search import OptunaSearch
from harness.spec.sweep import SweepSpec
from harness.tasks import Task, confirm_tasks, trial_stages
from harness.timings import Rates, Sort, dataset_sort, drawing_sort, past_timings, training_sort

CONFIRMATION = "confirmation pictures"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is missing of one dataset, training run or draw. `processes` work on it together."""

    row: str  # of the inventory
    sort: Sort
    missing: int
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Share:
    """One row of the estimate. `seconds` of one worker; null where something is missing and nothing known."""

    seconds: float | None
    timings: int
    scaled: bool
    untimed: int  # how many missing units have no timings


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The whole: `seconds` from start to end with so many tasks at once; a lower bound if not `complete`."""

    shares: dict[str, Share]
    seconds: float | None
    complete: bool
    workers: int
    workers_are_told: bool  # by compute.max_concurrent; else as many as this machine has room for
    cpu_hours: float
    gpu_hours: float


def estimated(bench: Bench, counts: Mapping[str, Count]) -> Estimate:
    """The time that remains of a sweep under its `compute`. `counts` are its inventory's."""
    rates, compute = Rates(past_timings(bench.workspace)), bench.plan.sweep.compute
    reckoning = Reckoning(bench, finished=not any(count.missing for count in counts.values()))
    seconds, everything = 0.0, list[Work]()
    for tasks in reckoning.stages():
        works = [reckoning.works(task) for task in tasks]
        processes = max((work.processes for task_works in works for work in task_works), default=1)
        at_once = max(1, workers(compute) // processes)
        seconds += _makespan((_seconds(task_works, rates) for task_works in works), at_once)
        everything += [work for task_works in works for work in task_works]
    by_row = {row: [work for work in everything if work.row == row] for row in (*counts, CONFIRMATION)}
    shares = {row: _share(works, rates) for row, works in by_row.items()}
    known = any(share.timings for share in shares.values()) or not any(work.missing for work in everything)
    process_seconds = sum(_seconds([work], rates) * work.processes for work in everything)
    return Estimate(
        shares=shares,
        seconds=seconds if known else None,
        complete=all_asked_for(bench.plan.sweep) and not any(share.untimed for share in shares.values()),
        workers=workers(compute),
        workers_are_told=compute.max_concurrent is not None,
        cpu_hours=process_seconds * compute.cpus_per_trial / 3600,
        gpu_hours=process_seconds * compute.gpus_per_trial / compute.training_workers / 3600,
    )


def all_asked_for(sweep: SweepSpec) -> bool:
    """False where a search will ask for trials that nobody knows yet."""
    return not isinstance(sweep.search, OptunaSearch) or len(sweep.search.points) == sweep.search.trials


def workers(compute: ComputeSpec) -> int:
    """How many processes work at once: as many as told, or as this machine has CPUs and GPUs for."""
    if compute.max_concurrent:
        return compute.max_concurrent
    room = (os.cpu_count() or 1) / compute.cpus_per_trial
    if compute.gpus_per_trial:
        room = min(room, gpus() * compute.training_workers / compute.gpus_per_trial)
    return max(1, int(room))


def gpus() -> int:
    """How many GPUs this machine has, at least one: who asks for them means to have them somewhere."""
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def _seconds(works: Iterable[Work], rates: Rates) -> float:
    """Of what is known."""
    known = ((work, rates.of(work.sort)) for work in works)
    return sum(work.missing * rate.seconds for work, rate in known if rate is not None)


def _share(works: list[Work], rates: Rates) -> Share:
    missing = [work for work in works if work.missing]
    found = {work.sort: rates.of(work.sort) for work in missing}
    known = [rate for rate in found.values() if rate is not None]
    return Share(
        seconds=_seconds(missing, rates) if known or not missing else None,
        timings=len({id(timing) for rate in known for timing in rate.timings}),
        scaled=any(rate.scaled for rate in known),
        untimed=sum(work.missing for work in missing if found[work.sort] is None),
    )


def _makespan(seconds: Iterable[float], at_once: int) -> float:
    """From start to end, each task given to the worker that is free first."""
    free = [0.0] * at_once
    for task in seconds:
        heapq.heapreplace(free, free[0] + task)
    return max(free)


class Reckoning:
    """The missing work of a sweep's tasks."""

    def __init__(self, bench: Bench, *, finished: bool) -> None:
        self.bench, self.plan, self.finished = bench, bench.plan, finished
        self.controls = {draw.draw_id for draw in self.plan.control_draws}

    def stages(self) -> Iterator[list[Task]]:
        """Tasks that are carried out together, stage after stage, the confirmation the last."""
        packed_for = workers(self.plan.sweep.compute)
        for _, tasks in trial_stages(self.plan, workers=packed_for):
            yield tasks
        yield self._confirmation()

    def _confirmation(self) -> list[Task]:
        """Of the trial that lacks least, where nothing else is missing: it was selected. Else of any."""
        each = (confirm_tasks(self.plan, trial.trial_id) for trial in self.plan.trials)
        if not self.finished:
            return next(each, [])
        return min(
            each,
            default=[],
            key=lambda tasks: sum(work.missing for task in tasks for work in self.works(task)),
        )

    def works(self, task: Task) -> list[Work]:
        """What a task has to make."""
        return [
            *(self._dataset(self.plan.datasets[dataset_id]) for dataset_id in task.datasets),
            *(self._run(self.plan.runs[run_id]) for run_id in task.runs),
            *(self._draw(self.plan.draws[draw_id], split) for draw_id, split in task.draws),
            *(self._look(draw) for run_id in task.runs for draw in probes_of_run(self.plan, run_id)),
        ]

    def _dataset(self, dataset: Dataset) -> Work:
        missing = inventory.dataset_pictures(self.bench, dataset).missing
        sort = dataset_sort(_json(dataset.model), _json(dataset.recipe))
        return Work(row="training pictures", sort=sort, missing=missing)

    def _run(self, run: TrainingRun) -> Work:
        missing = inventory.training_steps(self.bench, run).missing
        sort = training_sort(_json(run.dataset.model), _json(run.adapter), _json(run.training))
        processes = self.plan.sweep.compute.training_workers
        return Work(row="training steps", sort=sort, missing=missing, processes=processes)

    def _draw(self, draw: Draw, split: str) -> Work:
        control = draw.draw_id in self.controls
        row = "control pictures" if control else "adapter pictures" if split == "dev" else CONFIRMATION
        missing = inventory.pictures(self.bench, draw, split).missing
        return Work(row=row, sort=drawing_sort(_json(draw.model), draw_facts(draw)), missing=missing)

    def _look(self, draw: Draw) -> Work:
        cells = probe_cells(self.plan, draw)
        missing = len(missing_pictures(self.bench, draw, cells))
        return Work(
            row=inventory.LOOKS, sort=drawing_sort(_json(draw.model), draw_facts(draw)), missing=missing
        )


def _json(spec: Frozen) -> dict[str, Any]:
    return spec.model_dump(mode="json")
