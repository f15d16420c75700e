"""The remaining time of a sweep, from the store's timings: for `harness check --estimate`.

Only timings of the same model count: of equal work (denoising steps, batch, adapter) where there are any,
else of similar work, scaled by passes (`inventory.py`). Without timings the estimate is None. It leaves out
loading, encoding and scoring.
"""

import heapq
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.plan.cost import image_passes, step_passes
from harness.config.plan.plan import Cell, Dataset, Plan, ResolvedArm, TrainingRun, Trial
from harness.config.plan.rungs import rung_cells, rung_only_arms
from harness.config.schema.base import Frozen
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.search import OptunaSearch
from harness.config.schema.sweep import SweepConfig
from harness.engine.accounting import inventory
from harness.engine.outcomes import Outcome
from harness.engine.queue import Phase, Queue, Story
from harness.engine.stages.context import Count, never
from harness.engine.stages.datasets import parts_count, parts_of
from harness.engine.stages.sampling import arm_facts, missing_images
from harness.engine.tasks import (
    DatasetTask,
    ImagesTask,
    PartsTask,
    Task,
    TrainingTask,
    Wish,
    missing_tasks,
    tested_when_selected,
)
from harness.engine.worker import usable_cpus
from harness.errors import ArtifactError
from harness.store.artifact import is_manifest
from harness.store.workspace import Place, PlaceKind, Workspace

TIMED: frozenset[PlaceKind] = frozenset({"dataset", "checkpoint", "images"})


@dataclass(frozen=True)
class Sort:
    """A sort of work. Equal ones take as long per unit; those of one `family` as long per pass."""

    family: str
    settings: str
    unit_passes: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a finished artifact took to make."""

    sort: Sort
    units: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Seconds per unit, and what it is from; `scaled` where that is of other settings."""

    seconds: float
    timings: tuple[Timing, ...]
    scaled: bool


def past_timings(workspace: Workspace) -> list[Timing]:
    """How long finished artifacts took to make. Those that do not say it are left out.

    A training's checkpoints count from the start of the same call, so the last of them stands for all.
    """
    found: dict[str, tuple[int, Timing]] = {}
    places = [place for place in workspace.places() if place.kind in TIMED and place.artifact.done]
    workspace.fetch((place.artifact for place in places), is_manifest)
    for place in places:
        try:
            manifest = place.artifact.manifest()
            timing, call = _timing(place, manifest), _call(place, manifest)
        except (ArtifactError, KeyError, TypeError):  # damaged, or of another version: nothing is known
            continue
        if timing.units and (call not in found or found[call][0] < timing.units):
            found[call] = timing.units, timing
    return [timing for _, timing in found.values()]


def _call(place: Place, manifest: Mapping[str, Any]) -> str:
    """What was made in one go."""
    path = place.artifact.path
    return f"{path.parent.name} {manifest['facts']['from_step'] if place.kind == 'checkpoint' else path.name}"


def _timing(place: Place, manifest: Mapping[str, Any]) -> Timing:
    facts = manifest["facts"]
    images = sum(name.endswith(".png") for name in manifest["files"])
    match place.kind:
        case "checkpoint":
            sort = training_sort(facts["run"]["model"], facts["run"]["adapter"], facts["run"]["training"])
            return Timing(sort=sort, units=facts["step"] - facts["from_step"], seconds=facts["train_seconds"])
        case "dataset":
            sort = dataset_sort(facts["model"], facts["recipe"])
            return Timing(sort=sort, units=images, seconds=facts["generation_seconds"])
        case _:
            sort = image_sort(facts["model"], facts["arm"])
            return Timing(sort=sort, units=images, seconds=facts["made"]["generation_seconds"])


def training_sort(model: Any, adapter: Any, training: Mapping[str, Any]) -> Sort:
    """Of training steps, from the specifications as JSON."""
    prior = training["prior"] is not None
    passes = step_passes(training["batch_size"], training["gradient_accumulation"], prior=prior)
    return Sort(
        _text("training", model),
        _text(adapter, training["optimizer"]["kind"], training["ema"] is not None),
        passes,
    )


def image_sort(model: Any, arm: Mapping[str, Any]) -> Sort:
    """Of images. `arm` is as `sampling.arm_facts` gives it."""
    family = _text("generating", model, arm["scheduler"], arm["size"])
    settings = _text(arm["steps"], arm["refiner_start"], arm["adapters"])
    return Sort(family, settings, image_passes(arm["steps"]))


def dataset_sort(model: Any, recipe: Mapping[str, Any]) -> Sort:
    """Of training images, from the specifications as JSON."""
    if recipe["kind"] == "folder":
        return Sort(_text("reading"), "", 0)
    plain = {"scheduler": None, "size": None, "adapters": 0}
    return image_sort(model, {**plain, "steps": recipe["steps"], "refiner_start": recipe["refiner_start"]})


def _text(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


class Rates:
    """Seconds per unit of each sort of work: all seconds over all units, since a sum is what is asked for."""

    def __init__(self, timings: Iterable[Timing]) -> None:
        self.by_sort: dict[Sort, list[Timing]] = defaultdict(list)
        self.by_family: dict[str, list[Timing]] = defaultdict(list)
        for timing in timings:
            self.by_sort[timing.sort].append(timing)
            self.by_family[timing.sort.family].append(timing)

    def of(self, sort: Sort) -> Rate | None:
        """Of work just like it, else of the like; None if there is none."""
        if alike := self.by_sort.get(sort):
            seconds = sum(timing.seconds for timing in alike) / sum(timing.units for timing in alike)
            return Rate(seconds=seconds, timings=tuple(alike), scaled=False)
        if family := self.by_family.get(sort.family):
            passes = sum(timing.units * timing.sort.unit_passes for timing in family)
            per_pass = sum(timing.seconds for timing in family) / passes
            return Rate(seconds=per_pass * sort.unit_passes, timings=tuple(family), scaled=True)
        return None


CONFIRMATION = "confirmation images"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is missing of one dataset, training run or arm. `processes` work on it together."""

    row: str  # of the inventory
    sort: Sort
    missing: int
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Share:
    """One row of the estimate. `seconds` of one worker; None if something is missing and nothing known."""

    seconds: float | None
    timings: int
    scaled: bool
    untimed: int  # how many missing units have no timings


def workers(compute: ComputeConfig) -> int:
    """How many processes work at once: as many as told, or as this machine has CPUs and GPUs for."""
    if compute.max_concurrent:
        return compute.max_concurrent
    room = usable_cpus() / compute.cpus_per_trial
    if compute.gpus_per_trial:
        room = min(room, gpus() * compute.training_workers / compute.gpus_per_trial)
    return max(1, int(room))


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


def estimated(plan: Plan, workspace: Workspace, counts: Mapping[str, Count]) -> Estimate:
    """The time that remains of a sweep under its `compute`. `counts` are its inventory's."""
    rates, compute = Rates(past_timings(workspace)), plan.sweep.compute
    finished = not any(count.missing for count in counts.values())
    tasks = missing_tasks(Wish(plan=plan, workers=lambda: workers(compute)), workspace)
    works = {task.name: list(works_of(plan, workspace, task)) for task in tasks}
    confirmation = _confirmation(plan, workspace, finished=finished)
    everything = [*(work for some in works.values() for work in some), *confirmation]
    at_once = max(1, workers(compute) // max((work.processes for work in everything), default=1))
    seconds = makespan(tasks, lambda task: _seconds(works[task.name], rates), at_once)
    seconds += _seconds(confirmation, rates) / at_once
    by_row = {row: [work for work in everything if work.row == row] for row in (*counts, CONFIRMATION)}
    shares = {row: _share(of_row, rates) for row, of_row in by_row.items()}
    known = any(share.timings for share in shares.values()) or not any(work.missing for work in everything)
    process_seconds = sum(_seconds([work], rates) * work.processes for work in everything)
    return Estimate(
        shares=shares,
        seconds=seconds if known else None,
        complete=all_asked_for(plan.sweep) and not any(share.untimed for share in shares.values()),
        workers=workers(compute),
        workers_are_told=compute.max_concurrent is not None,
        cpu_hours=process_seconds * compute.cpus_per_trial / 3600,
        gpu_hours=process_seconds * compute.gpus_per_trial / compute.training_workers / 3600,
    )


def all_asked_for(sweep: SweepConfig) -> bool:
    """False if a search will propose trials that are not known yet."""
    return not isinstance(sweep.search, OptunaSearch) or len(sweep.search.points) == sweep.search.trials


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


def makespan(tasks: Sequence[Task], seconds: Callable[[Task], float], at_once: int) -> float:
    """From start to end, each task handed out by the sweep's own queue to the worker that is free first."""

    def story() -> Story:
        yield Phase(tasks=tasks)
        return None

    queue, now = Queue(story(), never), 0.0
    running: list[tuple[float, int, Task]] = []
    order = itertools.count()
    while not queue.finished:
        while len(running) < at_once and (task := queue.next()) is not None:
            heapq.heappush(running, (now + seconds(task), next(order), task))
        now, _, task = heapq.heappop(running)
        queue.done(Outcome(task=task))
    return now


def works_of(plan: Plan, workspace: Workspace, task: Task) -> Iterator[Work]:
    """What a task has to make."""
    match task:
        case PartsTask(dataset=dataset, parts=parts):
            yield _training_images(dataset, parts_count(dataset, parts))
        case DatasetTask(dataset=dataset) if not parts_of(dataset):
            yield _training_images(dataset, inventory.dataset_images(workspace, dataset).missing)
        case TrainingTask(runs=runs):
            for run in runs:
                yield _run(plan, workspace, run)
                for arm in rung_only_arms(plan, run.run_id):
                    yield _images(inventory.RUNGS, workspace, arm, rung_cells(plan, arm))
        case ImagesTask(wanted=wanted):
            controls = {arm.arm_id for arm in plan.control_arms}
            for arm, cells in wanted:
                row = "control images" if arm.arm_id in controls else "adapter images"
                yield _images(row, workspace, arm, cells)


def _confirmation(plan: Plan, workspace: Workspace, *, finished: bool) -> list[Work]:
    """Of the trial that lacks least, if nothing else is missing: it was selected. Else of any."""

    def works(trial: Trial) -> list[Work]:
        arms = tested_when_selected(plan, trial)
        return [_images(CONFIRMATION, workspace, arm, plan.cells(arm, "test")) for arm in arms]

    if not finished:
        return next(map(works, plan.trials), [])
    return min(map(works, plan.trials), key=lambda some: sum(work.missing for work in some), default=[])


def _training_images(dataset: Dataset, missing: int) -> Work:
    sort = dataset_sort(_json(dataset.model), _json(dataset.recipe))
    return Work(row="training images", sort=sort, missing=missing)


def _run(plan: Plan, workspace: Workspace, run: TrainingRun) -> Work:
    missing = inventory.training_steps(workspace, run).missing
    sort = training_sort(_json(run.dataset.model), _json(run.adapter), _json(run.training))
    processes = plan.sweep.compute.training_workers
    return Work(row="training steps", sort=sort, missing=missing, processes=processes)


def _images(row: str, workspace: Workspace, arm: ResolvedArm, cells: Sequence[Cell]) -> Work:
    missing = len(missing_images(workspace, arm, cells))
    return Work(row=row, sort=image_sort(_json(arm.model), arm_facts(arm)), missing=missing)


def _json(config: Frozen) -> dict[str, Any]:
    return config.model_dump(mode="json")
