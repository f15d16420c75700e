"""A sweep and its trials: what is varied, trained, generated, scored and compared."""

from collections import Counter
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import Field, model_validator

from harness.config.schema.adapter import (
    AdapterConfig,
    GivenAdapter,
    LowRankAdapter,
    OftAdapter,
    ProductAdapter,
    TextualInversion,
    TrialAdapter,
)
from harness.config.schema.base import NOT_HASHED, Frozen, Name, Seed, Text
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.evaluation import AnalysisConfig, ArmConfig, Controls, Prompt, SamplerConfig
from harness.config.schema.metric import DriftMetric, MetricConfig
from harness.config.schema.model import ModelConfig
from harness.config.schema.recipe import FolderRecipe, RecipeConfig
from harness.config.schema.search import (
    Axis,
    ContrastObjective,
    FifoScheduler,
    GridSearch,
    LossObjective,
    OptunaSearch,
    SchedulerConfig,
    SearchConfig,
)
from harness.config.schema.training import CAPTION, TrainingConfig


class Trained(NamedTuple):
    """What decides a trained adapter beside its model."""

    recipe: RecipeConfig
    adapter: AdapterConfig
    training: TrainingConfig


class TrialConfig(Frozen):
    """Everything that decides an adapter's bytes. What a combination would not use is an error.

    A trial whose adapter is a file has no recipe and no training.
    """

    model: ModelConfig
    recipe: RecipeConfig | None = None
    adapter: TrialAdapter
    training: TrainingConfig | None = None

    @property
    def trained(self) -> Trained:
        """Of a trial whose adapter is trained."""
        assert not isinstance(self.adapter, GivenAdapter)
        assert self.recipe is not None and self.training is not None
        return Trained(self.recipe, self.adapter, self.training)

    @property
    def is_trained(self) -> bool:
        """False where the adapter is a file."""
        return not isinstance(self.adapter, GivenAdapter)

    @model_validator(mode="after")
    def _all_of_it_is_used(self) -> "TrialConfig":
        _check_sections(self.adapter, self.recipe, self.training)
        if not self.is_trained:
            return self
        recipe, adapter, training = self.trained
        match adapter:
            case TextualInversion(word=word):
                _check_textual_inversion(word, training)
            case ProductAdapter(kind=kind) | OftAdapter(kind=kind):
                _check_rates(kind, training)
            case LowRankAdapter(text_encoders=False) if training.text_encoder_learning_rate is not None:
                raise ValueError(
                    "training.text_encoder_learning_rate is not used: set adapter.text_encoders: true, "
                    "or remove it"
                )
        if training.crop == "random" and not isinstance(recipe, FolderRecipe):
            raise ValueError(
                f"training.crop: random has no room in a {recipe.kind} recipe's square images; "
                "use a folder recipe, or crop: center"
            )
        return self


def _check_sections(
    adapter: TrialAdapter, recipe: RecipeConfig | None, training: TrainingConfig | None
) -> None:
    """A trained adapter has a recipe and training; a file has neither."""
    is_file = isinstance(adapter, GivenAdapter)
    for name, section in (("recipe", recipe), ("training", training)):
        if is_file and section is not None:
            raise ValueError(f"{name} is not used by adapter.kind: file, which is not trained; remove it")
        if not is_file and section is None:
            raise ValueError(f"{name} is missing")


def _check_rates(kind: str, training: TrainingConfig) -> None:
    """A kind with all of its parameters at one rate has no others."""
    unused = [
        name
        for name, used in (
            ("lora_plus_ratio", training.lora_plus_ratio == 1),
            ("text_encoder_learning_rate", training.text_encoder_learning_rate is None),
        )
        if not used
    ]
    if unused:
        raise ValueError(f"training.{unused[0]} is not used by {kind}; remove it")


def _check_textual_inversion(word: str, training: TrainingConfig) -> None:
    _check_rates("textual_inversion", training)
    if word not in training.prompt.lower().split() and CAPTION not in training.prompt:
        raise ValueError(f"training.prompt {training.prompt!r} must hold adapter.word {word!r}")


class NoTracking(Frozen):
    """Nothing is mirrored; the tables and the report are all there is."""

    kind: Literal["none"] = "none"


class WandbTracking(Frozen):
    """Mirror the sweep to Weights & Biases, from the driver alone. Parquet stays the truth."""

    kind: Literal["wandb"] = "wandb"
    project: Text = "lora-sweep-harness"
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    images_per_trial: Annotated[int, Field(ge=0, le=100, description="of each arm that a run shows")] = 4
    report: Annotated[bool, Field(description="a W&B report as well; needs the extra `report`")] = False
    live: Annotated[bool, Field(description="runs appear and grow while the sweep runs")] = False


Objective = ContrastObjective | LossObjective
AnyObjective = TypeVar("AnyObjective", bound=Objective)
TrackingConfig = Annotated[NoTracking | WandbTracking, Field(discriminator="kind")]


class SweepConfig(Frozen):
    """The whole of a sweep's YAML after reading: paths resolved, prompts read, digests filled in.

    `axes` maps a dotted name below `model`, `recipe`, `adapter` or `training` (or one of these sections
    whole) to the values it takes; the trials are their product, or what `search` picks of it.
    """

    name: Name
    question: Text
    model: ModelConfig
    recipe: RecipeConfig | None = None
    adapter: TrialAdapter = Field(default_factory=LowRankAdapter)
    training: TrainingConfig | None = None
    axes: dict[str, Axis] = Field(default_factory=dict)
    search: SearchConfig = Field(default_factory=GridSearch)
    scheduler: SchedulerConfig = Field(default_factory=FifoScheduler)
    arms: Annotated[tuple[ArmConfig, ...], Field(min_length=2, max_length=1000)]
    controls: Annotated[
        Controls | None, Field(description="arms that are added to these; null: none"), NOT_HASHED
    ] = None
    prompt_syntax: Annotated[
        Literal["compel", "a1111"],
        Field(description="of prompts and negatives; a1111's are translated when read"),
        NOT_HASHED,
    ] = "compel"
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=20_000)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=10_000)]
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    metrics: Annotated[tuple[MetricConfig, ...], Field(min_length=1)]
    analysis: AnalysisConfig = Field(default_factory=AnalysisConfig)
    tracking: Annotated[TrackingConfig, NOT_HASHED] = Field(default_factory=NoTracking)
    compute: Annotated[ComputeConfig, NOT_HASHED] = Field(default_factory=ComputeConfig)

    def meant(self, objective: AnyObjective) -> AnyObjective:
        """The objective with what it leaves to the sweep filled in."""
        if isinstance(objective, LossObjective):
            return objective
        own = next(arm.name for arm in self.arms if not arm.is_control)
        given = {
            "metric": objective.metric or self.analysis.primary,
            "arm": objective.arm or own,
            "control": objective.control or self.analysis.control,
        }
        return objective.model_copy(update=given)

    def with_meant_objectives(self) -> "SweepConfig":
        """The sweep with its search's objectives as they are meant, for readers of its tables."""
        if not isinstance(self.search, OptunaSearch):
            return self
        meant = tuple(map(self.meant, self.search.objectives))
        search = self.search.model_copy(update={"objectives": meant})
        return self.model_copy(update={"search": search})

    def more_is_better(self, objective: Objective) -> bool:
        """The direction of an objective that `check_combinations` let pass."""
        meant = self.meant(objective)
        if isinstance(meant, LossObjective):
            return False
        return next(bool(m.higher_is_better) for m in self.metrics if m.name == meant.metric)

    @model_validator(mode="before")
    @classmethod
    def _trained_unless_a_file(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("training") is not None:
            return raw
        adapter = raw.get("adapter")
        is_file = isinstance(adapter, GivenAdapter) or (
            isinstance(adapter, dict) and adapter.get("kind") == "file"
        )
        return raw if is_file else {**raw, "training": {}}

    @model_validator(mode="after")
    def _consistent(self) -> "SweepConfig":
        _check_sections(self.adapter, self.recipe, self.training)
        names: dict[str, list[str]] = {
            "arms": [arm.name for arm in self.arms],
            "prompts": [prompt.text for prompt in self.prompts],
            "seeds": [str(seed) for seed in self.seeds],
            "metrics": [metric.name for metric in self.metrics],
        }
        for what, values in names.items():
            doubled = sorted(value for value, count in Counter(values).items() if count > 1)
            if doubled:
                named = " (two of one kind need names: {kind: …, name: …})" if what == "metrics" else ""
                raise ValueError(f"{what} must differ; given twice: {', '.join(doubled)}{named}")
        if all(arm.is_control for arm in self.arms):
            raise ValueError("arms: at least one must use the trial's own adapter (adapters: [{scale: 1.0}])")
        controls = [arm.name for arm in self.arms if arm.can_select]
        allowed = f"is not a control arm without match and post; allowed: {', '.join(controls)}"
        if self.analysis.control not in controls:
            raise ValueError(f"analysis.control {self.analysis.control!r} {allowed}")
        for metric in self.metrics:
            if isinstance(metric, DriftMetric) and metric.control not in (None, *controls):
                raise ValueError(f"metrics: {metric.name}.control {metric.control!r} {allowed}")
        directed = [metric.name for metric in self.metrics if metric.higher_is_better is not None]
        if self.analysis.primary not in directed:
            allowed = ", ".join(directed)
            raise ValueError(f"analysis.primary {self.analysis.primary!r} cannot select; allowed: {allowed}")
        if not any(prompt.split == "dev" for prompt in self.prompts):
            raise ValueError("prompts: at least one must have split dev, to select on")
        return self
