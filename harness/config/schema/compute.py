"""Resources of a sweep. Nothing here changes a number, so nothing here is fingerprinted."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from harness.config.schema.base import Count, Frozen, Steps, Text


class ComputeConfig(Frozen):
    """Resources of one worker and how failures are met. A worker trains a run, or a pack of them."""

    cpus_per_trial: Annotated[float, Field(gt=0, description="of a worker, whatever it trains")] = 1
    gpus_per_trial: Annotated[
        float,
        Field(ge=0, description="of a worker; a fraction shares one; 2 or more train one run data-parallel"),
    ] = 0
    resources: Annotated[
        dict[Text, Annotated[float, Field(gt=0)]],
        Field(description="custom resources of the cluster's nodes that a trial holds, as a100: 0.5"),
    ] = Field(default_factory=dict)
    workers_per_trial: Annotated[
        int | None,
        Field(
            ge=1, le=100_000, description="processes that train one trial data-parallel; null: one per GPU"
        ),
    ] = None
    max_concurrent: Count | None = None
    max_failures: Annotated[
        int,
        Field(
            ge=0,
            description="times a failed task is tried again, and then a pack's runs each alone; a lost node "
            "is none",
        ),
    ] = 1
    timeout_minutes: Annotated[
        float | None,
        Field(
            gt=0, description="a run that takes longer is ended, a pack after so long for each of its runs"
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Field(ge=1, le=100_000, description="images generated in one batch; null: as many as memory allows"),
    ] = 8
    gradient_checkpointing: Annotated[
        bool, Field(description="train in less memory, about a third slower")
    ] = False
    compile: Annotated[
        bool, Field(description="torch.compile the UNet's blocks: a slow start, then faster")
    ] = False
    pack: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | Literal["auto", "off"],
        Field(description="runs trained in one forward pass; auto: as many as pay and fit; off: one"),
    ] = "auto"
    checkpoint_every: Annotated[Steps, Field(description="steps between resumable checkpoints")] = 100
    keep_checkpoints: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="of one run, besides its trials' checkpoints; older ones are removed",
        ),
    ] = 2

    report_every: Annotated[
        float | None,
        Field(gt=0, description="seconds between pages of an unfinished sweep; null: only at the end"),
    ] = 60

    @field_validator("resources")
    @classmethod
    def _custom(cls, resources: dict[str, float]) -> dict[str, float]:
        if own := sorted(name for name in resources if name.lower() in ("cpu", "gpu", "memory")):
            raise ValueError(f"{own[0]} is no custom resource; use cpus_per_trial or gpus_per_trial")
        return resources

    @property
    def training_workers(self) -> int:
        """Processes that train one run together."""
        return self.workers_per_trial or max(1, int(self.gpus_per_trial))

    @model_validator(mode="after")
    def _whole_workers(self) -> "ComputeConfig":
        if self.gpus_per_trial > 1 and self.gpus_per_trial % self.training_workers:
            raise ValueError("gpus_per_trial above 1 must be a multiple of workers_per_trial")
        return self
