"""The context of a worker: plan, store, progress, the stop signal, and the models that it keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

from harness.config.plan.plan import Plan
from harness.config.schema.metric import MetricConfig
from harness.config.schema.model import ModelConfig
from harness.diffusion.models.model import SamplerSettings
from harness.errors import HarnessError, Interrupted
from harness.store.workspace import Workspace

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model
    from harness.metrics.score import Scorer


Stop = Callable[[], bool]  # true once all are to stop


def never() -> bool:
    """A `Stop` that is never requested."""
    return False


Kind = Literal["dataset_images", "training_steps", "images", "trials"]
Event = Literal["worker lost", "node lost", "tried again", "made again", "stopped", "driver lost"]
Step = Callable[[str], None]  # what is done from here on, for a person
Report = Callable[[Kind | Event, int], None]  # what was made, or which incident, and how many

IMAGES_PER_BATCH = 8  # where nothing is known of the model, as when work is divided


def no_step(label: str) -> None:
    """The `Step` of a task that is not watched."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a training run, trained in one go: from a checkpoint (0: afresh) to its last checkpoint."""

    run_id: str
    start: int
    checkpoints: tuple[int, ...]


class Trainer(Protocol):
    """Trains segments and leaves their checkpoints in the store: in this process, or in several at once."""

    def __call__(self, ctx: "Context", segments: Sequence[Segment]) -> dict[str, HarnessError]:
        """Train; the datasets exist, and these runs are locked. Returns the errors by run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a worker needs to make things: the plan, the store, and how fast to go about it."""

    plan: Plan
    workspace: Workspace
    report: Report
    trainer: Trainer | None = None  # null: in this process
    stop: Stop = never
    step: Step = no_step

    def model(self, config: ModelConfig) -> "Model":
        """The model, loaded once per process and kept for the next task."""
        return _resident_model(config)

    def go_on(self) -> None:
        """Raise Interrupted where all are to stop; called where nothing would be lost."""
        if self.stop():
            raise Interrupted("stopped by Ctrl-C; what is finished is kept, and the same command goes on")

    def images_per_batch(self, model: "Model", settings: SamplerSettings) -> int:
        """How many images are drawn in one batch: as told, or as many as the model has memory for."""
        return self.plan.sweep.compute.batch_size or model.images_per_batch(settings)


@lru_cache(maxsize=1)
def _resident_model(config: ModelConfig) -> "Model":
    from harness.diffusion.models import load_model

    return load_model(config)


@lru_cache(maxsize=4)
def resident_scorer(metrics: tuple[MetricConfig, ...]) -> "Scorer":
    """The scorer, loaded once per process; it keeps each encoder for all metrics that share it."""
    from harness.metrics import build_metrics

    return build_metrics(metrics, device=None)


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many of a thing are asked for, how many of them are missing, and what the missing ones cost."""

    asked: int
    missing: int
    passes: float = 0.0

    def __add__(self, other: "Count") -> "Count":
        return Count(
            asked=self.asked + other.asked,
            missing=self.missing + other.missing,
            passes=self.passes + other.passes,
        )
