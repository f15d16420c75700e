"""The remaining time of a sweep, from the store's timings: for `harness check --estimate`.

Only timings of the same model count: of equal work (denoising steps, batch, adapter) where there are any,
else of similar work, scaled by passes (`inventory.py`). Without timings the estimate is None. It leaves out
loading, encoding and scoring.
"""

import heapq
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.plan.cost import image_passes, step_passes
from harness.config.plan.plan import Dataset, ResolvedArm, TrainingRun
from harness.config.plan.rungs import probe_cells, probes_of_run
from harness.config.schema.base import Frozen
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.search import OptunaSearch
from harness.config.schema.sweep import SweepConfig
from harness.engine.accounting import inventory
from harness.engine.stages.context import Context, Count
from harness.engine.stages.sampling import arm_facts, missing_images
from harness.engine.tasks import Task, confirm_tasks, trial_stages
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
    """How long a finished stage took to make."""

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
    """How long finished stages took to make. Those that do not say it are left out.

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
            sort = drawing_sort(facts["model"], facts["arm"])
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


def drawing_sort(model: Any, arm: Mapping[str, Any]) -> Sort:
    """Of images. `draw` is as `image_stages.arm_facts` gives it."""
    family = _text("drawing", model, arm["scheduler"], arm["size"])
    settings = _text(arm["steps"], arm["refiner_start"], arm["adapters"])
    return Sort(family, settings, image_passes(arm["steps"]))


def dataset_sort(model: Any, recipe: Mapping[str, Any]) -> Sort:
    """Of training images, from the specifications as JSON."""
    if recipe["kind"] == "folder":
        return Sort(_text("reading"), "", 0)
    plain = {"scheduler": None, "size": None, "adapters": 0}
    return drawing_sort(model, {**plain, "steps": recipe["steps"], "refiner_start": recipe["refiner_start"]})


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
        """Of work just like it, else of the like; null where there is none."""
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


def workers(compute: ComputeConfig) -> int:
    """How many processes work at once: as many as told, or as this machine has CPUs and GPUs for."""
    if compute.max_concurrent:
        return compute.max_concurrent
    room = (os.cpu_count() or 1) / compute.cpus_per_trial
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


def estimated(ctx: Context, counts: Mapping[str, Count]) -> Estimate:
    """The time that remains of a sweep under its `compute`. `counts` are its inventory's."""
    rates, compute = Rates(past_timings(ctx.workspace)), ctx.plan.sweep.compute
    reckoning = Reckoning(ctx, finished=not any(count.missing for count in counts.values()))
    seconds, everything = 0.0, list[Work]()
    for tasks in reckoning.artifacts():
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
        complete=all_asked_for(ctx.plan.sweep) and not any(share.untimed for share in shares.values()),
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


def _makespan(seconds: Iterable[float], at_once: int) -> float:
    """From start to end, each task given to the worker that is free first."""
    free = [0.0] * at_once
    for task in seconds:
        heapq.heapreplace(free, free[0] + task)
    return max(free)


class Reckoning:
    """The missing work of a sweep's tasks."""

    def __init__(self, ctx: Context, *, finished: bool) -> None:
        self.ctx, self.plan, self.finished = ctx, ctx.plan, finished
        self.controls = {arm.arm_id for arm in self.plan.control_arms}

    def artifacts(self) -> Iterator[list[Task]]:
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
            *(self._arm(self.plan.arms[arm_id], split) for arm_id, split in task.arms),
            *(self._look(arm) for run_id in task.runs for arm in probes_of_run(self.plan, run_id)),
        ]

    def _dataset(self, dataset: Dataset) -> Work:
        missing = inventory.dataset_images(self.ctx, dataset).missing
        sort = dataset_sort(_json(dataset.model), _json(dataset.recipe))
        return Work(row="training images", sort=sort, missing=missing)

    def _run(self, run: TrainingRun) -> Work:
        missing = inventory.training_steps(self.ctx, run).missing
        sort = training_sort(_json(run.dataset.model), _json(run.adapter), _json(run.training))
        processes = self.plan.sweep.compute.training_workers
        return Work(row="training steps", sort=sort, missing=missing, processes=processes)

    def _arm(self, arm: ResolvedArm, split: str) -> Work:
        control = arm.arm_id in self.controls
        row = "control images" if control else "adapter images" if split == "dev" else CONFIRMATION
        missing = inventory.images(self.ctx, arm, split).missing
        return Work(row=row, sort=drawing_sort(_json(arm.model), arm_facts(arm)), missing=missing)

    def _look(self, arm: ResolvedArm) -> Work:
        cells = probe_cells(self.plan, arm)
        missing = len(missing_images(self.ctx, arm, cells))
        return Work(row=inventory.LOOKS, sort=drawing_sort(_json(arm.model), arm_facts(arm)), missing=missing)


def _json(config: Frozen) -> dict[str, Any]:
    return config.model_dump(mode="json")
