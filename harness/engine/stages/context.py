"""The context of a worker: store, resources, progress, the stop signal, and the models that it keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from harness.config.plan.plan import Plan, TrainingRun
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.metric import MetricConfig
from harness.config.schema.model import ModelConfig
from harness.diffusion.models.model import SamplerSettings
from harness.errors import DamagedArtifact, HarnessError, Interrupted
from harness.store.artifact import Artifact, every
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
Step = Callable[[str], None]  # the label of what is done from here on
Report = Callable[[Kind | Event, int], None]  # what was made, or which incident, and how many

IMAGES_PER_BATCH = 8  # where nothing is known of the model, as when work is divided


def no_step(label: str) -> None:
    """The `Step` of a task that is not watched."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a training run, trained in one go: from a checkpoint (0: afresh) to its last checkpoint."""

    run: TrainingRun
    start: int
    checkpoints: tuple[int, ...]


class Trainer(Protocol):
    """Trains segments and leaves their checkpoints in the store: in this process, or in several at once."""

    def __call__(self, ctx: "Context", segments: Sequence[Segment]) -> dict[str, HarnessError]:
        """Train; the datasets exist. Returns the errors by run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a worker needs to make artifacts, whichever they are."""

    workspace: Workspace
    sweep: str  # its name
    compute: ComputeConfig
    report: Report
    trainer: Trainer | None = None  # None: in this process
    stop: Stop = never
    step: Step = no_step

    @classmethod
    def of(cls, plan: Plan, address: Path | str, report: Report, **more: Any) -> Self:
        """The context of a sweep in the workspace at an address. `more`: other fields."""
        sweep = plan.sweep
        workspace = Workspace(address, sweep=sweep.name)
        return cls(workspace=workspace, sweep=sweep.name, compute=sweep.compute, report=report, **more)

    def model(self, config: ModelConfig) -> "Model":
        """The model, loaded once per process and kept for the next task."""
        return _resident_model(config)

    def go_on(self) -> None:
        """Raise Interrupted if all are to stop; called where nothing would be lost."""
        if self.stop():
            raise Interrupted("stopped as requested; what is finished is kept, and the same command goes on")

    def images_per_batch(self, model: "Model", settings: SamplerSettings) -> int:
        """How many images are generated in one batch: as configured, or as the model has memory for."""
        return self.compute.batch_size or model.images_per_batch(settings)

    def check_whole(self, *artifacts: Artifact, concerned: Callable[[str], bool] = every) -> None:
        """Remove artifacts of which a file is damaged. Raises DamagedArtifact if any is damaged or gone."""
        lost = [artifact for artifact in artifacts if not artifact.done]  # found by another task
        for artifact in artifacts:
            if artifact.done and not artifact.whole(concerned):
                artifact.remove()
                self.report("made again", 1)
                lost.append(artifact)
        if lost:
            raise DamagedArtifact(f"{lost[0].place} was damaged and is made again")


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
