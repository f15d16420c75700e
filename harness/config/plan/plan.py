"""From a sweep to its plan: trials, training runs, datasets, arms, cells."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.config.plan.axes import Point, PointsAndTrials, label_at, trial_points
from harness.config.schema.adapter import AdapterConfig, GivenAdapter, HubFile
from harness.config.schema.base import fingerprint
from harness.config.schema.evaluation import (
    ArmAdapter,
    ArmConfig,
    Branch,
    GuiderConfig,
    MergeConfig,
    Noise,
    PostConfig,
    Prompt,
    Scheduler,
)
from harness.config.schema.model import ModelConfig
from harness.config.schema.recipe import RecipeConfig
from harness.config.schema.sweep import SweepConfig, TrialConfig
from harness.config.schema.training import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The images of one recipe, made once however many trials use them."""

    dataset_id: str
    model: ModelConfig
    recipe: RecipeConfig


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What must really be trained: one run, kept at each of `checkpoints` (steps, ascending)."""

    run_id: str
    dataset: Dataset
    adapter: AdapterConfig
    training: TrainingConfig  # its `steps` is the last checkpoint
    checkpoints: tuple[int, ...]
    prior: Dataset | None  # the class images of prior preservation

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """What must be there before training."""
        return (self.dataset,) if self.prior is None else (self.dataset, self.prior)


@dataclass(frozen=True, kw_only=True)
class ResolvedAdapter:
    """What acts in an arm: a checkpoint of a training run, or (run_id and steps null) a file or the hub's."""

    run_id: str | None
    steps: int | None
    weights: Literal["last", "ema"]
    file: Path | None
    hub: HubFile | None
    digest: str | None
    scale: float
    branch: Branch

    @property
    def identity(self) -> list[Any]:
        """What decides the images: a file's content, not its path; of the hub its id and revision."""
        content = self.digest if self.hub is None else self.hub
        return [self.run_id, self.steps, self.weights, content, self.scale, self.branch]


@dataclass(frozen=True, kw_only=True)
class ResolvedArm:
    """How a set of images is generated: an arm with its adapters resolved. Shared by trials that need it."""

    arm_id: str
    arm: str
    model: ModelConfig
    negative: str
    guidance: float
    guidance_interval: tuple[float, float] | None  # shares of the steps; None: always
    guidance_rescale: float
    guider: GuiderConfig
    steps: int
    scheduler: Scheduler | None
    size: tuple[int, int] | None  # width, height; null: the model's own
    refiner_start: float | None
    noise: Noise
    adapters: tuple[ResolvedAdapter, ...]
    merge: MergeConfig | None
    post: PostConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of the sweep. `params` are the axis values by dotted name, for people and for columns.

    An axis that is not applied is None; a value that is null is "none".
    """

    index: int
    trial_id: str
    config: TrialConfig
    params: dict[str, Any]
    run_id: str | None  # None: its adapter is a file
    arms: dict[str, str]  # arm name -> arm_id, controls included


def prompt_id(prompt: str) -> str:
    """The prompt's id in all tables: 16 hex digits of its text."""
    return fingerprint("prompt", text=prompt)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Arm × prompt × seed: one image. (prompt_id, seed) is the pair key, the same in every arm."""

    image_id: str
    arm_id: str
    prompt_id: str
    prompt: str
    tags: tuple[str, ...]
    split: str
    seed: int
    noise_seed: int  # of the generator of the starting latents, and of a sampler's own noise


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a sweep asks for, each distinct thing once, in a stable order."""

    sweep: SweepConfig
    trials: tuple[Trial, ...]
    datasets: dict[str, Dataset]
    runs: dict[str, TrainingRun]
    arms: dict[str, ResolvedArm]
    points: PointsAndTrials = ()  # as validated, for the next plan of a sweep with more points

    @cached_property
    def control_arms(self) -> tuple[ResolvedArm, ...]:
        """Arms that need no training and are of no trial: generated once per sweep, before all else.

        Those whose guidance is searched for are of the selected trial.
        """
        others = {arm_id for arms in self._arms_by_run.values() for arm_id in arms}
        others |= {arm.arm_id for arm in self.file_arms}
        others |= {arm.arm_id for arm in self.matched_arms}
        return tuple(arm for arm in self.arms.values() if arm.arm_id not in others)

    @cached_property
    def matched_arms(self) -> tuple[ResolvedArm, ...]:
        """Controls of the selected trial at the guidances that a `match` has tried, found ones included.

        One that is another arm as well is not among them.
        """
        names = {arm.name for arm in self.sweep.arms if arm.match is not None}
        return tuple(arm for arm in self.arms.values() if arm.arm in names)

    @cached_property
    def file_arms(self) -> tuple[ResolvedArm, ...]:
        """Arms with trials' own adapters that are files, where nothing is trained for them."""
        own = [arm.name for arm in self.sweep.arms if not arm.is_control]
        found = dict.fromkeys(
            trial.arms[name] for trial in self.trials if trial.run_id is None for name in own
        )
        trained = {arm_id for arms in self._arms_by_run.values() for arm_id in arms}
        return tuple(self.arms[arm_id] for arm_id in found if arm_id not in trained)

    @cached_property
    def own_runs(self) -> frozenset[str]:
        """The runs that trials are checkpoints of; shams and other arms' adapters are not among them."""
        return frozenset(trial.run_id for trial in self.trials if trial.run_id is not None)

    @cached_property
    def trials_ending_with(self) -> Counter[str]:
        """How many trials have all their own images once an arm is done."""
        own = [arm.name for arm in self.sweep.arms if not arm.is_control]
        return Counter(trial.arms[own[-1]] for trial in self.trials)

    def arms_of_run(self, run_id: str) -> tuple[ResolvedArm, ...]:
        """Arms that are made once this run is trained, in order of steps.

        An arm with adapters of several runs belongs to the last of them, so that it is generated once.
        """
        found = [self.arms[arm_id] for arm_id in self._arms_by_run.get(run_id, ())]
        return tuple(sorted(found, key=lambda arm: max(adapter.steps or 0 for adapter in arm.adapters)))

    @cached_property
    def _arms_by_run(self) -> dict[str, list[str]]:
        order = {run_id: place for place, run_id in enumerate(self.runs)}
        found: dict[str, list[str]] = {}
        for arm in self.arms.values():
            runs = [adapter.run_id for adapter in arm.adapters if adapter.run_id is not None]
            if runs:
                found.setdefault(max(runs, key=order.__getitem__), []).append(arm.arm_id)
        return found

    def at_other_guidance(self, trial: Trial, arm: ArmConfig) -> dict[float, ResolvedArm]:
        """The plan's arms that generate as this one does for the trial but for the guidance, by that."""
        builder = _Builder(self.sweep)
        like = builder.arms[builder.arm(trial.config, arm)]
        found = (replace(like, guidance=a.guidance, arm_id=a.arm_id, arm=a.arm) for a in self.arms.values())
        return {a.guidance: a for a in found if self.arms[a.arm_id] == a}

    def cells(self, arm: ResolvedArm, split: str) -> tuple[Cell, ...]:
        """The images of an arm on one split of the prompts."""
        return tuple(cells(arm, self.sweep.prompts, self.sweep.seeds, split))


def arm_at(arm: ResolvedArm, steps: int) -> ResolvedArm:
    """The same arm with the trained adapters as they were after so many steps."""
    adapters = (a if a.run_id is None else replace(a, steps=steps) for a in arm.adapters)
    return _identified(replace(arm, adapters=tuple(adapters)))


def _identified(arm: ResolvedArm) -> ResolvedArm:
    """The arm with the id of what decides its images."""
    parts = {f.name: getattr(arm, f.name) for f in fields(arm) if f.name not in ("arm_id", "arm")}
    if arm.post is None:  # as images were named before there was such damage
        del parts["post"]
    adapters = [adapter.identity for adapter in arm.adapters]
    return replace(arm, arm_id=fingerprint("arm", **{**parts, "adapters": adapters}))


def cells(
    arm: ResolvedArm, prompts: tuple[Prompt, ...], seeds: tuple[int, ...], split: str
) -> Iterator[Cell]:
    """Cells in order of prompt, then seed."""
    for prompt, seed in itertools.product([p for p in prompts if p.split == split], seeds):
        yield Cell(
            image_id=fingerprint("image", arm=arm.arm_id, prompt=prompt.text, seed=seed),
            arm_id=arm.arm_id,
            prompt_id=prompt_id(prompt.text),
            prompt=prompt.text,
            tags=prompt.tags,
            split=split,
            seed=seed,
            noise_seed=seed if arm.noise == "shared" else noise_seed(prompt.text, seed),
        )


def noise_seed(prompt: str, seed: int) -> int:
    """Seed of the starting noise of a prompt: 48 bits of a hash, the same in every arm and every sweep.

    No two prompts share a noise: with noises in common all prompts err together, and an interval over
    prompts covers too little. 48 bits are exact in JSON, and more than the 32 of training images' seeds.
    """
    return int(fingerprint("noise", prompt=prompt, seed=seed)[:12], 16)


def expand(sweep: SweepConfig, known: PointsAndTrials = ()) -> Plan:
    """The plan of a sweep. Needs no model, no files and no heavy library.

    `known` are points of this sweep that were validated before; only the others are validated.
    """
    builder = _Builder(sweep)
    for point, config in trial_points(sweep, known):
        builder.add(point, config)
    return builder.plan()


class _Builder:
    """Collects each distinct dataset, run and arm once while trials are added."""

    def __init__(self, sweep: SweepConfig) -> None:
        self.sweep = sweep
        self.points: list[tuple[Point, TrialConfig]] = []
        self.trials: dict[str, Trial] = {}
        self.datasets: dict[str, Dataset] = {}
        self.runs: dict[str, TrainingRun] = {}
        self.arms: dict[str, ResolvedArm] = {}

    def add(self, point: Point, config: TrialConfig) -> None:
        self.points.append((point, config))
        trial_id = fingerprint("trial", config=config)
        if trial_id in self.trials:  # two axis values that mean the same (8 and 8.0) are one trial
            return
        run_id = self._run(config) if config.is_trained else None
        self.trials[trial_id] = Trial(
            index=len(self.trials),
            trial_id=trial_id,
            config=config,
            params={name: label_at(point, name) for name in self.sweep.axes},
            run_id=run_id,
            arms=self._arms(trial_id, config),
        )

    def _arms(self, trial_id: str, config: TrialConfig) -> dict[str, str]:
        """A trial's arms in the sweep's order. Those with a `match` are of one trial, once found.

        They come after the others into the plan, since what they share with one of these is its.
        """
        found = {arm.name: self.arm(config, arm) for arm in self.sweep.arms if arm.match is None}
        for arm in self.sweep.arms:
            if arm.match is None or arm.match.trial != trial_id:
                continue
            for guidance in arm.match.tried:
                self.arm(config, arm.model_copy(update={"guidance": guidance}))
            if arm.guidance is not None:
                found[arm.name] = self.arm(config, arm)
        return {arm.name: found[arm.name] for arm in self.sweep.arms if arm.name in found}

    def plan(self) -> Plan:
        return Plan(
            sweep=self.sweep,
            trials=tuple(self.trials.values()),
            datasets=self.datasets,
            runs=self.runs,
            arms=self.arms,
            points=tuple(self.points),
        )

    def _dataset(self, model: ModelConfig, recipe: RecipeConfig) -> Dataset:
        dataset_id = fingerprint("dataset", model=model, recipe=recipe)
        return self.datasets.setdefault(
            dataset_id, Dataset(dataset_id=dataset_id, model=model, recipe=recipe)
        )

    def _run(self, config: TrialConfig) -> str:
        recipe, adapter, asked = config.trained
        dataset, prior = self._dataset(config.model, recipe), asked.prior
        shared = set() if asked.schedule.depends_on_length else {"steps"}
        training = {name: getattr(asked, name) for name in TrainingConfig.model_fields if name not in shared}
        run_id = fingerprint("run", dataset=dataset.dataset_id, adapter=adapter, training=training)
        known = self.runs[run_id].checkpoints if run_id in self.runs else ()
        checkpoints = tuple(sorted({*known, asked.steps}))
        self.runs[run_id] = TrainingRun(
            run_id=run_id,
            dataset=dataset,
            adapter=adapter,
            training=TrainingConfig(**{**training, "steps": checkpoints[-1]}),
            checkpoints=checkpoints,
            prior=None if prior is None else self._dataset(config.model, prior.recipe),
        )
        return run_id

    def arm(self, config: TrialConfig, arm_config: ArmConfig) -> str:
        """The id of an arm of a trial, resolved and added."""
        sampler = self.sweep.sampler
        guidance = sampler.guidance_of(arm_config)
        parts: dict[str, Any] = {
            "negative": arm_config.negative,
            "guidance": guidance.scale,
            "guidance_interval": guidance.interval,
            "guidance_rescale": sampler.guidance_rescale,
            "guider": guidance.guider,
            "steps": sampler.steps,
            "scheduler": sampler.scheduler,
            "size": sampler.size,
            "refiner_start": sampler.refiner_start,
            "noise": sampler.noise,
            "merge": arm_config.merge,
            "post": arm_config.post,
        }
        adapters = tuple(self._adapter(config, adapter) for adapter in arm_config.adapters)
        arm = _identified(
            ResolvedArm(arm_id="", arm=arm_config.name, model=config.model, adapters=adapters, **parts)
        )
        return self.arms.setdefault(arm.arm_id, arm).arm_id

    def _adapter(self, config: TrialConfig, adapter: ArmAdapter) -> ResolvedAdapter:
        run_id = steps = None
        given: ArmAdapter | GivenAdapter = adapter
        if adapter.is_own and isinstance(config.adapter, GivenAdapter):
            given = config.adapter
        elif not adapter.is_file:
            trained = adapter_trial(config, adapter)
            run_id, steps = self._run(trained), trained.trained.training.steps
        return ResolvedAdapter(
            run_id=run_id,
            steps=steps,
            weights=adapter.weights,
            file=given.file,
            hub=given.hub,
            digest=given.digest,
            scale=adapter.scale,
            branch=adapter.branch,
        )


def adapter_trial(config: TrialConfig, adapter: ArmAdapter) -> TrialConfig:
    """What is trained for an arm's adapter: the trial itself, or the trial with parts replaced.

    Not validated: `check_sweep` does that once, when the sweep is loaded. Raises ValueError for a sham where
    clean images cannot be made like the trial's own.
    """
    if adapter.is_own:
        return config
    if adapter.sham is not None:
        return config.model_copy(update={"recipe": adapter.sham.recipe_like(config.trained.recipe)})
    parts = {"recipe": adapter.recipe, "adapter": adapter.adapter, "training": adapter.training}
    return config.model_copy(update={name: part for name, part in parts.items() if part is not None})
