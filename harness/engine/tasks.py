"""The tasks of a sweep: each artifact has exactly one that makes it, and tasks wait for artifacts."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil

from harness.config.plan.cost import image_passes, run_passes
from harness.config.plan.packing import planned_packs
from harness.config.plan.plan import Cell, Dataset, Plan, ResolvedArm, TrainingRun, Trial
from harness.config.plan.rungs import Rung, rungs_of
from harness.config.schema.metric import MetricConfig
from harness.config.schema.model import ModelConfig
from harness.config.schema.recipe import GeneratedRecipe
from harness.engine.stages.datasets import missing_parts, parts_count
from harness.engine.stages.encodings import missing_texts, texts_id, views_of, worth_encoding
from harness.engine.stages.sampling import Wanted, image_ids, missing_images
from harness.engine.stages.scoring import listed, missing_metrics
from harness.engine.stages.training import missing_checkpoints
from harness.store.workspace import Workspace

IMAGES_PER_TASK = 64  # at most, so that no worker is left alone with many at the end
FEWEST_IMAGES = 16
TASKS_PER_WORKER = 4


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit of dispatch. `makes` and `needs` are names of artifacts, which begin with a kind and an id."""

    name: str
    makes: tuple[str, ...]
    needs: frozenset[str] = frozenset()

    def without(self, lost: str) -> "Task | None":
        """What is left to do if a needed artifact will not be there; None if nothing is."""
        return None

    @property
    def subjects(self) -> tuple[str, ...]:
        """The ids of the datasets, runs or arms that the task is about."""
        return tuple(dict.fromkeys(name.split()[1] for name in self.makes))


@dataclass(frozen=True, kw_only=True)
class PartsTask(Task):
    """Generates some parts of a dataset."""

    dataset: Dataset
    parts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetTask(Task):
    """Joins the parts of a dataset, or reads a folder; encodes the latents that training reads."""

    dataset: Dataset
    views: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TextsTask(Task):
    """Encodes prompts by one model."""

    model: ModelConfig
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingTask(Task):
    """Trains a pack of runs, each to its last checkpoint, or to the rung where it is stopped."""

    runs: tuple[TrainingRun, ...]
    rungs: tuple[Rung, ...] = ()

    def without(self, lost: str) -> Task | None:
        """The runs that train on other datasets. Without an image of a control a rung has a pair less."""
        if not lost.startswith("dataset "):
            return replace(self, needs=self.needs - {lost})
        runs = [run for run in self.runs if lost not in map(dataset_name, run.datasets)]
        left = [rung for rung in self.rungs if rung.run_id in {run.run_id for run in runs}]
        return training_task(runs, left, self.needs - {lost}) if runs else None


@dataclass(frozen=True, kw_only=True)
class ImagesTask(Task):
    """Generates images of several arms, and scores them."""

    wanted: tuple[Wanted, ...]
    metrics: tuple[MetricConfig, ...]
    made_of: dict[str, str] = field(default_factory=dict, hash=False)  # by arm: the name of what is made

    def without(self, lost: str) -> Task | None:
        """The arms that do without a lost checkpoint."""
        wanted = tuple((arm, cells) for arm, cells in self.wanted if lost not in checkpoints_of(arm))
        if not wanted or lost.startswith("texts "):
            return None
        makes = tuple(self.made_of[arm.arm_id] for arm, _ in wanted)
        return replace(self, wanted=wanted, makes=makes, needs=self.needs - {lost})


def dataset_name(dataset: Dataset) -> str:
    """The name of a whole dataset, its latents included."""
    return f"dataset {dataset.dataset_id}"


def checkpoint_name(run_id: str, steps: int) -> str:
    """The name of a checkpoint."""
    return f"checkpoint {run_id} {steps}"


def checkpoints_of(arm: ResolvedArm) -> list[str]:
    """The names of the checkpoints that an arm's adapters are."""
    return [checkpoint_name(a.run_id, a.steps or 0) for a in arm.adapters if a.run_id is not None]


def training_task(
    runs: Sequence[TrainingRun], rungs: Sequence[Rung] = (), needs: Iterable[str] = ()
) -> TrainingTask:
    """The task of a pack of runs. `needs`: what else than its datasets it waits for."""
    return TrainingTask(
        name=" ".join(["training", *(run.run_id for run in runs)]),
        runs=tuple(runs),
        rungs=tuple(rungs),
        makes=tuple(checkpoint_name(run.run_id, steps) for run in runs for steps in run.checkpoints),
        needs=frozenset(needs),
    )


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What of a plan is to be made now.

    `racing` runs report at rungs. Subjects in `failed` are left out, runs in `alone` are not packed.
    `workers` is asked only if something is missing.
    """

    plan: Plan
    workers: Callable[[], int]
    splits: tuple[str, ...] = ("dev", "test")  # of arms without adapters; of all others dev alone
    racing: Collection[str] = ()
    failed: Collection[str] = ()
    alone: Collection[str] = ()


def missing_tasks(wish: Wish, workspace: Workspace) -> list[Task]:
    """What makes all that the store lacks, in the order in which workers are to take it.

    Datasets come first. Training runs come longest first, so that no worker is left alone with a long one at
    the end (Graham 1969). While runs race, the others wait: what only a stopped trial needs is not made.
    """
    with listed(wish.plan, workspace):
        return _Planner(wish, workspace).tasks()


def confirm_tasks(wish: Wish, workspace: Workspace, best: str | None) -> list[Task]:
    """Test images of the trial selected on dev, of the controls that have adapters, and of matched ones."""
    trial = next((trial for trial in wish.plan.trials if trial.trial_id == best), None)
    if trial is None:
        return []
    arms = tested_when_selected(wish.plan, trial)
    with listed(wish.plan, workspace):
        planner = _Planner(wish, workspace)
        return planner.with_texts(planner.images([(arm, "test") for arm in arms], ()))


def tested_when_selected(plan: Plan, trial: Trial) -> list[ResolvedArm]:
    """A trial's arms, in the order of the sweep, without the controls that are generated on test anyway.

    Arms that are equal are one: a matched control may be another control, at the very guidance that it has.
    """
    arms = (plan.arms[arm_id] for arm_id in dict.fromkeys(trial.arms.values()))
    return [arm for arm in arms if arm.adapters or arm in plan.matched_arms]


class _Planner:
    def __init__(self, wish: Wish, workspace: Workspace) -> None:
        self.wish, self.plan, self.workspace = wish, wish.plan, workspace

    @cached_property
    def workers(self) -> int:
        return self.wish.workers()

    def tasks(self) -> list[Task]:
        runs = [run for run in self.plan.runs.values() if self._is_open(run)]
        datasets = list(self._datasets(runs))
        unmade = {name for task in datasets for name in task.makes}
        controls = [(arm, split) for arm in self.plan.control_arms for split in self.wish.splits]
        control_images = self.images(controls, ())
        training = self._training(runs, unmade, control_images)
        free = {arm.arm_id for arm in self.plan.control_arms}
        of_trials = [(arm, "dev") for arm in self.plan.arms.values() if arm.arm_id not in free]
        images = self.images(of_trials, training)
        if self.wish.racing:  # rungs compare with controls
            return self.with_texts([*datasets, *control_images, *training, *images])
        return self.with_texts([*datasets, *training, *control_images, *images])

    def _is_open(self, run: TrainingRun) -> bool:
        if run.run_id in self.wish.failed:
            return False
        if self.wish.racing:
            return run.run_id in self.wish.racing
        return bool(missing_checkpoints(self.workspace, run))

    def _datasets(self, runs: Sequence[TrainingRun]) -> Iterator[Task]:
        joins: list[Task] = []
        for dataset in self.plan.datasets.values():
            if dataset.dataset_id in self.wish.failed:
                continue
            views = self._views(dataset, runs)
            done = self.workspace.dataset(dataset.dataset_id).done
            if done and not views:
                continue
            parts = missing_parts(self.workspace, dataset)
            generated = list(self._parts(dataset, parts))
            yield from generated
            name = dataset_name(dataset)
            needs = frozenset(name for task in generated for name in task.makes)
            joins.append(DatasetTask(name=name, dataset=dataset, views=views, makes=(name,), needs=needs))
        yield from joins

    def _parts(self, dataset: Dataset, parts: Sequence[int]) -> Iterator[Task]:
        if not parts:
            return
        size = ceil(len(parts) / (self.workers * TASKS_PER_WORKER))
        for first in range(0, len(parts), size):
            some = tuple(parts[first : first + size])
            makes = tuple(f"part {dataset.dataset_id} {part}" for part in some)
            name = f"part {dataset.dataset_id} {some[0]}"
            yield PartsTask(name=name, dataset=dataset, parts=some, makes=makes)

    def _views(self, dataset: Dataset, runs: Sequence[TrainingRun]) -> tuple[str, ...]:
        """The latents of a dataset that open runs read and the store lacks."""
        return tuple(
            dict.fromkeys(
                view
                for run in runs
                for of, view in views_of(run)
                if of.dataset_id == dataset.dataset_id
                and worth_encoding(run, dataset)
                and not self.workspace.latents(dataset.dataset_id, view).done
            )
        )

    def _training(
        self, runs: Sequence[TrainingRun], unmade: Collection[str], controls: Sequence[Task]
    ) -> list[TrainingTask]:
        tasks = []
        for pack in self._packs(runs):
            names = {dataset_name(dataset) for run in pack for dataset in run.datasets}
            needs = {name for name in names if name in unmade}
            rungs = [
                rung
                for run in pack
                if run.run_id in self.wish.racing
                for rung in rungs_of(self.plan, run.run_id)
            ]
            compared = {rung.control.arm_id for rung in rungs if rung.control is not None}
            needs |= {name for task in controls for name in task.makes if name.split()[1] in compared}
            tasks.append(training_task(pack, rungs, needs))
        return sorted(tasks, key=lambda task: -sum(map(run_passes, task.runs)))

    def _packs(self, runs: Sequence[TrainingRun]) -> list[list[TrainingRun]]:
        alone = [run for run in runs if run.run_id in self.wish.alone]
        together = {run.run_id: run for run in runs if run.run_id not in self.wish.alone}
        open_to_choice = bool(together) and self.plan.sweep.compute.pack == "auto"
        workers = self.workers if open_to_choice else 1
        packs = planned_packs(replace(self.plan, runs=together), workers=workers) if together else []
        return [*packs, *([run] for run in alone)]

    def images(
        self, asked: Sequence[tuple[ResolvedArm, str]], training: Sequence[TrainingTask]
    ) -> list[Task]:
        """Tasks for what is missing of these arms on these splits, those of one pack together."""
        makers = {name: number for number, task in enumerate(training) for name in task.makes}
        groups: dict[frozenset[int], dict[str, list[tuple[ResolvedArm, tuple[Cell, ...]]]]] = {}
        for arm, split in asked:
            needed = [name for name in checkpoints_of(arm) if not self._has_checkpoint(name)]
            if arm.arm_id in self.wish.failed or any(name not in makers for name in needed):
                continue
            units = list(self._units(arm, split))
            if units:
                group = groups.setdefault(frozenset(makers[name] for name in needed), {})
                group.setdefault(arm.arm_id, []).extend((arm, unit) for unit in units)
        total = sum(len(cells) for group in groups.values() for units in group.values() for _, cells in units)
        if not total:
            return []
        size = min(IMAGES_PER_TASK, max(FEWEST_IMAGES, ceil(total / (self.workers * TASKS_PER_WORKER))))
        tasks: list[Task] = []
        for numbers, group in groups.items():
            for some in _filled([unit for units in group.values() for unit in units], size):
                tasks.append(self._images_task(some, len(tasks), makers if numbers else {}))
        return tasks

    def _has_checkpoint(self, name: str) -> bool:
        _, run_id, steps = name.split()
        return self.workspace.checkpoint(run_id, int(steps)).done

    def _units(self, arm: ResolvedArm, split: str) -> Iterator[tuple[Cell, ...]]:
        """Cells that one task must have together: a missing image alone, those of a chunk without scores."""
        cells = {cell.image_id: cell for cell in self.plan.cells(arm, split)}
        yield from ((cell,) for cell in missing_images(self.workspace, arm, tuple(cells.values())))
        for chunk in self.workspace.image_chunks(arm.arm_id):
            if missing_metrics(self.workspace, chunk, self.plan.sweep.metrics):
                unit = tuple(cells[image_id] for image_id in image_ids(chunk) if image_id in cells)
                if unit:
                    yield unit

    def _images_task(
        self, units: Sequence[tuple[ResolvedArm, tuple[Cell, ...]]], number: int, makers: dict[str, int]
    ) -> Task:
        arms = {arm.arm_id: arm for arm, _ in units}
        wanted = tuple(
            (arm, tuple(cell for of, cells in units if of.arm_id == arm_id for cell in cells))
            for arm_id, arm in arms.items()
        )
        made_of = {arm_id: f"images {arm_id} {number}" for arm_id in arms}
        needs = {name for arm in arms.values() for name in checkpoints_of(arm) if name in makers}
        return ImagesTask(
            name=f"images {number} of {' '.join(arms)}",
            wanted=wanted,
            metrics=self.plan.sweep.metrics,
            makes=tuple(made_of.values()),
            made_of=made_of,
            needs=frozenset(needs),
        )

    def with_texts(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks, those that generate images after the prompts of their models are encoded."""
        images = [task for task in tasks if isinstance(task, ImagesTask)]
        models = dict.fromkeys(arm.model for task in images for arm, _ in task.wanted)
        texts: dict[ModelConfig, Task] = {}
        for model in models:
            if missing := missing_texts(self.workspace, self.plan, model):
                name = f"texts {texts_id(model)}"
                texts[model] = TextsTask(name=name, model=model, texts=tuple(missing), makes=(name,))
        waiting = [
            replace(
                task, needs=task.needs | {texts[a.model].name for a, _ in task.wanted if a.model in texts}
            )
            if isinstance(task, ImagesTask)
            else task
            for task in tasks
        ]
        return [*texts.values(), *waiting]


def _filled(
    units: Sequence[tuple[ResolvedArm, tuple[Cell, ...]]], size: int
) -> Iterator[list[tuple[ResolvedArm, tuple[Cell, ...]]]]:
    """The units in order, in tasks of about this many cells each."""
    total = sum(len(cells) for _, cells in units)
    at_most = ceil(total / ceil(total / size))  # as even as they can be
    some: list[tuple[ResolvedArm, tuple[Cell, ...]]] = []
    count = 0
    for unit in units:
        some.append(unit)
        count += len(unit[1])
        if count >= at_most:
            yield some
            some, count = [], 0
    if some:
        yield some


def task_passes(task: Task) -> int:
    """What a task costs on an empty store, in passes of the UNet."""
    match task:
        case PartsTask(dataset=dataset, parts=parts):
            assert isinstance(dataset.recipe, GeneratedRecipe)
            return parts_count(dataset, parts) * image_passes(dataset.recipe.steps)
        case TrainingTask(runs=runs):
            return sum(map(run_passes, runs))
        case ImagesTask(wanted=wanted):
            return sum(len(cells) * image_passes(arm.steps) for arm, cells in wanted)
        case _:
            return 0
