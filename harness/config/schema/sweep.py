"""A sweep and its trials: what is varied, trained, generated, scored and compared."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from harness.config.schema.adapter import AdapterConfig, LowRankAdapter, TextualInversion
from harness.config.schema.base import NOT_HASHED, Frozen, Name, Text
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.evaluation import AnalysisConfig, ArmConfig, Prompt, SamplerConfig
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


class TrialConfig(Frozen):
    """Everything that decides an adapter's bytes. What a combination would not use is an error."""

    model: ModelConfig
    recipe: RecipeConfig
    adapter: AdapterConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _all_of_it_is_used(self) -> "TrialConfig":
        match self.adapter:
            case TextualInversion(word=word):
                self._textual_inversion(word)
            case LowRankAdapter(text_encoders=False) if self.training.text_encoder_learning_rate is not None:
                raise ValueError(
                    "training.text_encoder_learning_rate is not used: set adapter.text_encoders: true, "
                    "or remove it"
                )
        if self.training.crop == "random" and not isinstance(self.recipe, FolderRecipe):
            raise ValueError(
                f"training.crop: random has no room in a {self.recipe.kind} recipe's square images; "
                "use a folder recipe, or crop: center"
            )
        return self

    def _textual_inversion(self, word: str) -> None:
        unused = [
            name
            for name, used in (
                ("lora_plus_ratio", self.training.lora_plus_ratio == 1),
                ("text_encoder_learning_rate", self.training.text_encoder_learning_rate is None),
            )
            if not used
        ]
        if unused:
            raise ValueError(f"training.{unused[0]} is not used by textual_inversion; remove it")
        if word not in self.training.prompt.lower().split() and CAPTION not in self.training.prompt:
            raise ValueError(f"training.prompt {self.training.prompt!r} must hold adapter.word {word!r}")


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
    recipe: RecipeConfig
    adapter: AdapterConfig = Field(default_factory=LowRankAdapter)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    axes: dict[str, Axis] = Field(default_factory=dict)
    search: SearchConfig = Field(default_factory=GridSearch)
    scheduler: SchedulerConfig = Field(default_factory=FifoScheduler)
    arms: Annotated[tuple[ArmConfig, ...], Field(min_length=2)]
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
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

    @model_validator(mode="after")
    def _consistent(self) -> "SweepConfig":
        names: dict[str, list[str]] = {
            "arms": [arm.name for arm in self.arms],
            "prompts": [prompt.text for prompt in self.prompts],
            "seeds": [str(seed) for seed in self.seeds],
            "metrics": [metric.name for metric in self.metrics],
        }
        for what, values in names.items():
            doubled = sorted({value for value in values if values.count(value) > 1})
            if doubled:
                named = " (two of one kind need names: {kind: …, name: …})" if what == "metrics" else ""
                raise ValueError(f"{what} must differ; given twice: {', '.join(doubled)}{named}")
        if all(arm.is_control for arm in self.arms):
            raise ValueError("arms: at least one must use the trial's own adapter (adapters: [{scale: 1.0}])")
        controls = [arm.name for arm in self.arms if arm.is_control]
        if self.analysis.control not in controls:
            allowed = ", ".join(controls)
            raise ValueError(
                f"analysis.control {self.analysis.control!r} is not a control arm; allowed: {allowed}"
            )
        for metric in self.metrics:
            if isinstance(metric, DriftMetric) and metric.control not in (None, *controls):
                raise ValueError(
                    f"metrics: {metric.name}.control {metric.control!r} is not a control arm; allowed: "
                    f"{', '.join(controls)}"
                )
        directed = [metric.name for metric in self.metrics if metric.higher_is_better is not None]
        if self.analysis.primary not in directed:
            allowed = ", ".join(directed)
            raise ValueError(f"analysis.primary {self.analysis.primary!r} cannot select; allowed: {allowed}")
        if not any(prompt.split == "dev" for prompt in self.prompts):
            raise ValueError("prompts: at least one must have split dev, to select on")
        return self
