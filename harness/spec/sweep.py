"""A sweep: one frozen description of what is varied, drawn, scored and compared."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from harness.execution.spec import ComputeSpec
from harness.metrics.spec import MetricSpec
from harness.models.spec import ModelSpec
from harness.recipes.spec import RecipeSpec
from harness.spec.adapter import AdapterSpec, LowRankAdapter
from harness.spec.base import HOW, Frozen, Name, Text
from harness.spec.evaluation import AnalysisSpec, ArmSpec, Prompt, SamplerSpec
from harness.spec.objective import ContrastObjective, LossObjective
from harness.spec.scheduler import FifoScheduler, SchedulerSpec
from harness.spec.search import Axis, GridSearch, OptunaSearch, SearchSpec
from harness.spec.training import TrainingSpec


class NoTracking(Frozen):
    """Nothing is mirrored; the tables and the report are all there is."""

    kind: Literal["none"] = "none"


class WandbTracking(Frozen):
    """Mirror the sweep to Weights & Biases, from the driver alone. Parquet stays the truth."""

    kind: Literal["wandb"] = "wandb"
    project: Text = "lora-sweep-harness"
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    images_per_trial: Annotated[int, Field(ge=0, le=100)] = 4


Objective = ContrastObjective | LossObjective
AnyObjective = TypeVar("AnyObjective", bound=Objective)
TrackingSpec = Annotated[NoTracking | WandbTracking, Field(discriminator="kind")]


class SweepSpec(Frozen):
    """The whole of a sweep's YAML after reading: paths resolved, prompts read, digests filled in.

    `axes` maps a dotted name below `model`, `recipe`, `adapter` or `training` (or one of these sections
    whole) to the values it takes; the trials are their product, or what `search` picks of it.
    """

    name: Name
    question: Text
    model: ModelSpec
    recipe: RecipeSpec
    adapter: AdapterSpec = Field(default_factory=LowRankAdapter)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    axes: dict[str, Axis] = Field(default_factory=dict)
    search: SearchSpec = Field(default_factory=GridSearch)
    scheduler: SchedulerSpec = Field(default_factory=FifoScheduler)
    arms: Annotated[tuple[ArmSpec, ...], Field(min_length=2)]
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    sampler: SamplerSpec = Field(default_factory=SamplerSpec)
    metrics: Annotated[tuple[MetricSpec, ...], Field(min_length=1)]
    analysis: AnalysisSpec = Field(default_factory=AnalysisSpec)
    tracking: Annotated[TrackingSpec, HOW] = Field(default_factory=NoTracking)
    compute: Annotated[ComputeSpec, HOW] = Field(default_factory=ComputeSpec)

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

    def with_meant_objectives(self) -> "SweepSpec":
        """The sweep with its search's objectives as they are meant, for whoever reads its tables."""
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
        return next(bool(m.higher_is_better) for m in self.metrics if m.kind == meant.metric)

    @model_validator(mode="after")
    def _consistent(self) -> "SweepSpec":
        names: dict[str, list[str]] = {
            "arms": [arm.name for arm in self.arms],
            "prompts": [prompt.text for prompt in self.prompts],
            "seeds": [str(seed) for seed in self.seeds],
            "metrics": [metric.kind for metric in self.metrics],
        }
        for what, values in names.items():
            doubled = sorted({value for value in values if values.count(value) > 1})
            if doubled:
                raise ValueError(f"{what} must differ; given twice: {', '.join(doubled)}")
        if all(arm.is_control for arm in self.arms):
            raise ValueError("arms: at least one must use the trial's own adapter (adapters: [{scale: 1.0}])")
        controls = [arm.name for arm in self.arms if arm.is_control]
        if self.analysis.control not in controls:
            allowed = ", ".join(controls)
            raise ValueError(
                f"analysis.control {self.analysis.control!r} is not a control arm; allowed: {allowed}"
            )
        directed = [metric.kind for metric in self.metrics if metric.higher_is_better is not None]
        if self.analysis.primary not in directed:
            allowed = ", ".join(directed)
            raise ValueError(f"analysis.primary {self.analysis.primary!r} cannot select; allowed: {allowed}")
        if not any(prompt.split == "dev" for prompt in self.prompts):
            raise ValueError("prompts: at least one must have split dev, to select on")
        return self
