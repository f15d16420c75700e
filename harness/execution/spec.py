"""How a sweep is carried out. Nothing here changes a number, so nothing here is fingerprinted."""

from typing import Annotated

from pydantic import Field

from harness.spec.base import Frozen


class ComputeSpec(Frozen):
    """Resources of one worker and how failures are met."""

    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0
    max_concurrent: Annotated[int | None, Field(ge=1)] = None
    max_failures: Annotated[int, Field(ge=0, description="times a lost or failed task is tried again")] = 1
    batch_size: Annotated[int, Field(ge=1, description="pictures drawn in one batch")] = 8
    checkpoint_every: Annotated[int, Field(ge=1, description="steps between resumable checkpoints")] = 100
