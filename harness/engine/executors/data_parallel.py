"""One training run in several processes: accelerate inside a Ray Train TorchTrainer.

Each process takes its shard of a step's rows, and the gradients are averaged: the adapter equals that of one
process at the same batch, up to the order of sums.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from harness.engine.executors.ray_cluster import of_one_process
from harness.engine.stages.context import Context, Event, Kind, Segment, no_step
from harness.engine.stages.training import train_segments
from harness.errors import HarnessError, TrainingError


def train_on_workers(ctx: Context, segments: Sequence[Segment]) -> dict[str, HarnessError]:
    """The `Trainer` of `compute.training_workers` processes, one run after the other."""
    failed: dict[str, HarnessError] = {}
    for segment in segments:
        try:
            _train_on_workers(ctx, segment)
        except HarnessError as error:
            failed[segment.run.run_id] = error
    return failed


def _train_on_workers(ctx: Context, segment: Segment) -> None:
    """Progress is reported when the processes have ended.

    Raises what the training itself raised, and RuntimeError where processes were lost. Tune tries again.
    """
    compute, run_id = ctx.compute, segment.run.run_id
    folder = ctx.workspace.sweep(ctx.sweep) / ".train" / run_id
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    trainer = TorchTrainer(
        _train_shard,
        train_loop_config={
            "ctx": replace(ctx, report=_silent, trainer=None, step=no_step),
            "segment": segment,
        },
        scaling_config=ScalingConfig(
            num_workers=compute.training_workers,
            use_gpu=compute.gpus_per_trial > 0,
            resources_per_worker={name: share for name, share in of_one_process(compute).items() if share},
        ),
        run_config=RunConfig(
            name=run_id, storage_path=str(folder), failure_config=FailureConfig(max_failures=0)
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        known = [cause for cause in error.worker_failures.values() if isinstance(cause, HarnessError)]
        if known:
            raise known[0] from None
        causes = "; ".join(sorted({str(cause).splitlines()[-1] for cause in error.worker_failures.values()}))
        raise RuntimeError(f"run {run_id}: a training process was lost: {causes}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    missing = [steps for steps in segment.checkpoints if not ctx.workspace.checkpoint(run_id, steps).done]
    if missing:
        raise TrainingError(f"run {run_id} ended without its checkpoints at {missing} steps")
    ctx.report("training_steps", segment.checkpoints[-1] - segment.start)


def _train_shard(config: dict[str, Any]) -> None:
    """What each process does; torch.distributed is set up by Ray Train."""
    import torch

    ctx: Context = config["ctx"]
    torch.set_num_threads(max(1, int(ctx.compute.cpus_per_trial)))
    for error in train_segments(ctx, [config["segment"]]).values():
        raise error


def _silent(kind: Kind | Event, count: int) -> None:
    """The processes report through the one that started them."""
