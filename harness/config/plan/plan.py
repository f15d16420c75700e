"""From a sweep to the plan of what must really be done: trials, training runs, datasets, draws, cells."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.config.plan.axes import Point, trial_points
from harness.config.schema.adapter import AdapterSpec
from harness.config.schema.base import fingerprint
from harness.config.schema.evaluation import ArmAdapter, ArmSpec, Branch, MergeSpec, Prompt, Scheduler
from harness.config.schema.model import ModelSpec
from harness.config.schema.recipe import RecipeSpec
from harness.config.schema.sweep import SweepSpec, TrialSpec
from harness.config.schema.training import TrainingSpec


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The pictures of one recipe, made once however many trials use them."""

    dataset_id: str
    model: ModelSpec
    recipe: RecipeSpec


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What must really be trained: one run, kept at each of `snapshots` (steps, ascending)."""

    run_id: str
    dataset: Dataset
    adapter: AdapterSpec
    training: TrainingSpec  # its `steps` is the last snapshot
    snapshots: tuple[int, ...]
    prior: Dataset | None  # the class pictures of prior preservation

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """What must be there before training."""
        return (self.dataset,) if self.prior is None else (self.dataset, self.prior)


@dataclass(frozen=True, kw_only=True)
class DrawAdapter:
    """What acts in a draw: a snapshot of a training run, or (run_id and steps null) a file."""

    run_id: str | None
    steps: int | None
    weights: Literal["last", "ema"]
    file: Path | None
    digest: str | None
    scale: float
    branch: Branch

    @property
    def identity(self) -> list[Any]:
        """What decides the pictures: a file's content, not its path."""
        return [self.run_id, self.steps, self.weights, self.digest, self.scale, self.branch]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How a set of pictures is drawn: an arm with its adapters resolved. Shared by trials that need it."""

    draw_id: str
    arm: str
    model: ModelSpec
    negative: str
    guidance: float
    guidance_rescale: float
    steps: int
    scheduler: Scheduler | None
    size: tuple[int, int] | None  # width, height; null: the model's own
    refiner_start: float | None
    adapters: tuple[DrawAdapter, ...]
    merge: MergeSpec | None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of the sweep. `params` are the axis values by dotted name, for people and for columns.

    An axis that is not applied is null.
    """

    index: int
    trial_id: str
    spec: TrialSpec
    params: dict[str, Any]
    run_id: str
    draws: dict[str, str]  # arm name -> draw_id, controls included


def prompt_id(prompt: str) -> str:
    """The prompt's id in all tables: 16 hex digits of its text."""
    return fingerprint("prompt", text=prompt)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Draw × prompt × seed: one picture. (prompt_id, seed) is the pair key, the same in every arm."""

    image_id: str
    draw_id: str
    prompt_id: str
    prompt: str
    tags: tuple[str, ...]
    split: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a sweep asks for, each distinct thing once, in a stable order."""

    sweep: SweepSpec
    trials: tuple[Trial, ...]
    datasets: dict[str, Dataset]
    runs: dict[str, TrainingRun]
    draws: dict[str, Draw]

    @cached_property
    def control_draws(self) -> tuple[Draw, ...]:
        """Draws that need no training: drawn once per sweep, before all else."""
        trained = {draw_id for draws in self._draws_by_run.values() for draw_id in draws}
        return tuple(draw for draw in self.draws.values() if draw.draw_id not in trained)

    @cached_property
    def own_runs(self) -> frozenset[str]:
        """The runs that trials are snapshots of; shams and other arms' adapters are not among them."""
        return frozenset(trial.run_id for trial in self.trials)

    @cached_property
    def trials_ending_with(self) -> Counter[str]:
        """How many trials have all their own pictures once a draw is done."""
        own = [arm.name for arm in self.sweep.arms if not arm.is_control]
        return Counter(trial.draws[own[-1]] for trial in self.trials)

    def draws_of_run(self, run_id: str) -> tuple[Draw, ...]:
        """Draws that are made once this run is trained, in order of steps.

        A draw with adapters of several runs belongs to the last of them, so that nobody waits for it twice.
        """
        found = [self.draws[draw_id] for draw_id in self._draws_by_run.get(run_id, ())]
        return tuple(sorted(found, key=lambda draw: max(adapter.steps or 0 for adapter in draw.adapters)))

    @cached_property
    def _draws_by_run(self) -> dict[str, list[str]]:
        order = {run_id: place for place, run_id in enumerate(self.runs)}
        found: dict[str, list[str]] = {}
        for draw in self.draws.values():
            runs = [adapter.run_id for adapter in draw.adapters if adapter.run_id is not None]
            if runs:
                found.setdefault(max(runs, key=order.__getitem__), []).append(draw.draw_id)
        return found

    def cells(self, draw: Draw, split: str) -> tuple[Cell, ...]:
        """The pictures of a draw on one split of the prompts."""
        return tuple(cells(draw, self.sweep.prompts, self.sweep.seeds, split))


def draw_at(draw: Draw, steps: int) -> Draw:
    """The same draw with the trained adapters as they were after so many steps."""
    adapters = (a if a.run_id is None else replace(a, steps=steps) for a in draw.adapters)
    return _identified(replace(draw, adapters=tuple(adapters)))


def _identified(draw: Draw) -> Draw:
    """The draw with the id of what decides its pictures."""
    parts = {f.name: getattr(draw, f.name) for f in fields(draw) if f.name not in ("draw_id", "arm")}
    adapters = [adapter.identity for adapter in draw.adapters]
    return replace(draw, draw_id=fingerprint("draw", **{**parts, "adapters": adapters}))


def cells(draw: Draw, prompts: tuple[Prompt, ...], seeds: tuple[int, ...], split: str) -> Iterator[Cell]:
    """Cells in order of prompt, then seed."""
    for prompt, seed in itertools.product([p for p in prompts if p.split == split], seeds):
        yield Cell(
            image_id=fingerprint("image", draw=draw.draw_id, prompt=prompt.text, seed=seed),
            draw_id=draw.draw_id,
            prompt_id=prompt_id(prompt.text),
            prompt=prompt.text,
            tags=prompt.tags,
            split=split,
            seed=seed,
        )


def expand(sweep: SweepSpec) -> Plan:
    """The plan of a sweep. Needs no model, no files and no heavy library."""
    builder = _Builder(sweep)
    for point, spec in trial_points(sweep):
        builder.add(point, spec)
    return builder.plan()


def param_label(value: Any) -> Any:
    """An axis value as it stands in a column: a section given whole is named by its `name` or its `kind`."""
    match value:
        case dict():
            return value.get("name") or value.get("kind") or value.get("prompt")
        case list() | tuple():
            return ", ".join(map(str, value))
        case plain:
            return plain


class _Builder:
    """Collects each distinct dataset, run and draw once while trials are added."""

    def __init__(self, sweep: SweepSpec) -> None:
        self.sweep = sweep
        self.trials: dict[str, Trial] = {}
        self.datasets: dict[str, Dataset] = {}
        self.runs: dict[str, TrainingRun] = {}
        self.draws: dict[str, Draw] = {}

    def add(self, point: Point, spec: TrialSpec) -> None:
        trial_id = fingerprint("trial", spec=spec)
        if trial_id in self.trials:  # two axis values that mean the same (8 and 8.0) are one trial
            return
        run_id = self._run(spec)
        self.trials[trial_id] = Trial(
            index=len(self.trials),
            trial_id=trial_id,
            spec=spec,
            params={name: param_label(point.get(name)) for name in self.sweep.axes},
            run_id=run_id,
            draws={arm.name: self._draw(spec, arm) for arm in self.sweep.arms},
        )

    def plan(self) -> Plan:
        return Plan(
            sweep=self.sweep,
            trials=tuple(self.trials.values()),
            datasets=self.datasets,
            runs=self.runs,
            draws=self.draws,
        )

    def _dataset(self, model: ModelSpec, recipe: RecipeSpec) -> Dataset:
        dataset_id = fingerprint("dataset", model=model, recipe=recipe)
        return self.datasets.setdefault(
            dataset_id, Dataset(dataset_id=dataset_id, model=model, recipe=recipe)
        )

    def _run(self, spec: TrialSpec) -> str:
        dataset, prior = self._dataset(spec.model, spec.recipe), spec.training.prior
        shared = set() if spec.training.schedule.depends_on_length else {"steps"}
        training = {
            name: getattr(spec.training, name) for name in TrainingSpec.model_fields if name not in shared
        }
        run_id = fingerprint("run", dataset=dataset.dataset_id, adapter=spec.adapter, training=training)
        known = self.runs[run_id].snapshots if run_id in self.runs else ()
        snapshots = tuple(sorted({*known, spec.training.steps}))
        self.runs[run_id] = TrainingRun(
            run_id=run_id,
            dataset=dataset,
            adapter=spec.adapter,
            training=TrainingSpec(**{**training, "steps": snapshots[-1]}),
            snapshots=snapshots,
            prior=None if prior is None else self._dataset(spec.model, prior.recipe),
        )
        return run_id

    def _draw(self, spec: TrialSpec, arm: ArmSpec) -> str:
        sampler = self.sweep.sampler
        parts: dict[str, Any] = {
            "negative": arm.negative,
            "guidance": sampler.guidance if arm.guidance is None else arm.guidance,
            "guidance_rescale": sampler.guidance_rescale,
            "steps": sampler.steps,
            "scheduler": sampler.scheduler,
            "size": sampler.size,
            "refiner_start": sampler.refiner_start,
            "merge": arm.merge,
        }
        adapters = tuple(self._adapter(spec, adapter) for adapter in arm.adapters)
        draw = _identified(Draw(draw_id="", arm=arm.name, model=spec.model, adapters=adapters, **parts))
        return self.draws.setdefault(draw.draw_id, draw).draw_id

    def _adapter(self, spec: TrialSpec, adapter: ArmAdapter) -> DrawAdapter:
        run_id = steps = None
        if adapter.file is None:
            trained = adapter_trial(spec, adapter)
            run_id, steps = self._run(trained), trained.training.steps
        return DrawAdapter(
            run_id=run_id,
            steps=steps,
            weights=adapter.weights,
            file=adapter.file,
            digest=adapter.digest,
            scale=adapter.scale,
            branch=adapter.branch,
        )


def adapter_trial(spec: TrialSpec, adapter: ArmAdapter) -> TrialSpec:
    """What is trained for an arm's adapter: the trial itself, or the trial with parts replaced.

    Raises pydantic.ValidationError where the parts do not go together.
    """
    if adapter.is_own:
        return spec
    return TrialSpec(
        model=spec.model,
        recipe=adapter.recipe,
        adapter=adapter.adapter or spec.adapter,
        training=adapter.training or spec.training,
    )
