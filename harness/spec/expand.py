"""From a sweep to the plan of what must really be done: trials, training runs, datasets, draws, cells."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.models.spec import ModelSpec
from harness.recipes.spec import RecipeSpec
from harness.spec.evaluation import ArmSpec, Branch, Prompt
from harness.spec.fingerprint import fingerprint
from harness.spec.sweep import SweepSpec
from harness.spec.trial import AdapterSpec, TrainingSpec, TrialSpec

TRIAL_SECTIONS = ("model", "recipe", "adapter", "training")


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


@dataclass(frozen=True, kw_only=True)
class DrawAdapter:
    """A snapshot of a training run that acts in a draw."""

    run_id: str
    steps: int
    scale: float
    branch: Branch


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How a set of pictures is drawn: an arm with its adapters resolved. Shared by trials that need it."""

    draw_id: str
    arm: str
    model: ModelSpec
    negative: str
    guidance: float
    steps: int
    refiner_start: float | None
    adapters: tuple[DrawAdapter, ...]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of the sweep. `params` are the axis values by dotted name, for people and for columns."""

    index: int
    trial_id: str
    spec: TrialSpec
    params: dict[str, Any]
    run_id: str
    draws: dict[str, str]  # arm name -> draw_id, controls included


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
        """Draws in which no adapter acts: drawn once per sweep."""
        return tuple(draw for draw in self.draws.values() if not draw.adapters)

    @cached_property
    def trials_ending_with(self) -> Counter[str]:
        """How many trials have all their own pictures once a draw is done."""
        own = [arm.name for arm in self.sweep.arms if not arm.is_control]
        return Counter(trial.draws[own[-1]] for trial in self.trials)

    def draws_of_run(self, run_id: str) -> tuple[Draw, ...]:
        """Draws whose pictures need a snapshot of this run, in order of steps."""
        found = [draw for draw in self.draws.values() if any(a.run_id == run_id for a in draw.adapters)]
        return tuple(sorted(found, key=lambda draw: max(adapter.steps for adapter in draw.adapters)))

    def cells(self, draw: Draw, split: str) -> tuple[Cell, ...]:
        """The pictures of a draw on one split of the prompts."""
        return tuple(cells(draw, self.sweep.prompts, self.sweep.seeds, split))


def prompt_id(prompt: str) -> str:
    """The prompt's id in all tables: 16 hex digits of its text."""
    return fingerprint("prompt", text=prompt)


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


def apply_axis(raw: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of the raw trial mapping with one dotted name replaced. The name was checked on reading."""
    head, _, rest = dotted.partition(".")
    if not rest:
        return {**raw, head: value}
    return {**raw, head: apply_axis(raw[head], rest, value)}


def apply_axes(raw: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """The raw trial mapping with every axis applied: sections replaced whole, then names inside them."""
    for dotted in sorted(params, key=lambda dotted: "." in dotted):
        raw = apply_axis(raw, dotted, params[dotted])
    return raw


def base_trial(sweep: SweepSpec) -> dict[str, Any]:
    """The raw trial mapping that axes are applied to."""
    return {name: getattr(sweep, name).model_dump(mode="json") for name in TRIAL_SECTIONS}


def trial_points(sweep: SweepSpec) -> Iterator[tuple[dict[str, Any], TrialSpec]]:
    """Axis values and the trial they make, the last axis fastest.

    Axes are applied to the raw mapping and validated again, because pydantic does not validate updates
    of a finished model. Raises pydantic.ValidationError where a value is not allowed.
    """
    base = base_trial(sweep)
    for values in itertools.product(*sweep.axes.values()):
        params = dict(zip(sweep.axes, values, strict=True))
        yield params, TrialSpec.model_validate(apply_axes(base, params))


def expand(sweep: SweepSpec) -> Plan:
    """The plan of a sweep. Needs no model, no files and no heavy library."""
    builder = _Builder(sweep)
    for params, spec in trial_points(sweep):
        builder.add(params, spec)
    return builder.plan()


def param_label(value: Any) -> Any:
    """An axis value as it stands in a column: a section given whole is named by its `name` or its `kind`."""
    return (value.get("name") or value["kind"]) if isinstance(value, dict) else value


class _Builder:
    """Collects each distinct dataset, run and draw once while trials are added."""

    def __init__(self, sweep: SweepSpec) -> None:
        self.sweep = sweep
        self.trials: dict[str, Trial] = {}
        self.datasets: dict[str, Dataset] = {}
        self.runs: dict[str, TrainingRun] = {}
        self.draws: dict[str, Draw] = {}

    def add(self, params: dict[str, Any], spec: TrialSpec) -> None:
        trial_id = fingerprint("trial", spec=spec)
        if trial_id in self.trials:  # two axis values that mean the same (8 and 8.0) are one trial
            return
        run_id = self._run(spec, spec.recipe)
        self.trials[trial_id] = Trial(
            index=len(self.trials),
            trial_id=trial_id,
            spec=spec,
            params={name: param_label(value) for name, value in params.items()},
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

    def _run(self, spec: TrialSpec, recipe: RecipeSpec) -> str:
        dataset_id = fingerprint("dataset", model=spec.model, recipe=recipe)
        dataset = self.datasets.setdefault(
            dataset_id, Dataset(dataset_id=dataset_id, model=spec.model, recipe=recipe)
        )
        training = {
            name: getattr(spec.training, name) for name in TrainingSpec.model_fields if name != "steps"
        }
        run_id = fingerprint("run", dataset=dataset_id, adapter=spec.adapter, training=training)
        known = self.runs[run_id].snapshots if run_id in self.runs else ()
        snapshots = tuple(sorted({*known, spec.training.steps}))
        self.runs[run_id] = TrainingRun(
            run_id=run_id,
            dataset=dataset,
            adapter=spec.adapter,
            training=TrainingSpec(**training, steps=snapshots[-1]),
            snapshots=snapshots,
        )
        return run_id

    def _draw(self, spec: TrialSpec, arm: ArmSpec) -> str:
        sampler = self.sweep.sampler
        parts: dict[str, Any] = {
            "negative": arm.negative,
            "guidance": sampler.guidance if arm.guidance is None else arm.guidance,
            "steps": sampler.steps,
            "refiner_start": sampler.refiner_start,
        }
        adapters = tuple(
            DrawAdapter(
                run_id=self._run(spec, spec.recipe if adapter.recipe is None else adapter.recipe),
                steps=spec.training.steps,
                scale=adapter.scale,
                branch=adapter.branch,
            )
            for adapter in arm.adapters
        )
        identity = [[a.run_id, a.steps, a.scale, a.branch] for a in adapters]
        draw_id = fingerprint("draw", model=spec.model, adapters=identity, **parts)
        self.draws.setdefault(
            draw_id, Draw(draw_id=draw_id, arm=arm.name, model=spec.model, adapters=adapters, **parts)
        )
        return draw_id
