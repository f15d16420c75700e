"""Checkpoints of training runs, made unless the store has them. They are verified before their use."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.loading.tokens import hub_file
from harness.config.plan.packing import packs
from harness.config.plan.plan import ResolvedAdapter, TrainingRun
from harness.diffusion.adapters.adapter import EMA
from harness.engine.stages.context import Context, Segment
from harness.engine.stages.encodings import latent_files
from harness.errors import HarnessError
from harness.store.artifact import Artifact, is_adapter, is_training_state
from harness.store.workspace import Workspace

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model
    from harness.diffusion.training.run_state import Job


def make_checkpoints(ctx: Context, runs: Sequence[TrainingRun]) -> dict[str, HarnessError]:
    """All checkpoints of these runs, each continuing from the nearest one that exists.

    Runs that can be are trained together; their datasets are there. Returns the errors by run; the other runs
    are whole.
    """
    runs = [run for run in runs if missing_checkpoints(ctx.workspace, run)]
    datasets = dict.fromkeys(dataset.dataset_id for run in runs for dataset in run.datasets)
    ctx.check_whole(*map(ctx.workspace.dataset, datasets))
    failed: dict[str, HarnessError] = {}
    for pack in packs(runs, 1 if ctx.compute.pack == "off" else max(1, len(runs))):
        while segments := [
            segment
            for run in pack
            if run.run_id not in failed and (segment := _next_segment(ctx, run)) is not None
        ]:
            ctx.go_on()
            failed.update((ctx.trainer or train_segments)(ctx, segments))
            ctx.go_on()
    return failed


def missing_checkpoints(workspace: Workspace, run: TrainingRun) -> list[int]:
    """Steps at which the run has no finished checkpoint yet, ascending."""
    return [steps for steps in run.checkpoints if not workspace.checkpoint(run.run_id, steps).done]


def resume_step(workspace: Workspace, run: TrainingRun, before: int) -> int:
    """The last finished checkpoint before `before` steps; 0 to start afresh."""
    return max((steps for steps in workspace.checkpoints(run.run_id) if steps < before), default=0)


def _next_segment(ctx: Context, run: TrainingRun) -> Segment | None:
    """From the last whole checkpoint before the first missing checkpoint, up to the next one that exists."""
    workspace = ctx.workspace
    missing = missing_checkpoints(workspace, run)
    if not missing:
        return None
    while start := resume_step(workspace, run, missing[0]):
        before = workspace.checkpoint(run.run_id, start)
        if before.whole(is_training_state):
            break
        before.remove()
        ctx.report("made again", 1)
    existing = [steps for steps in workspace.checkpoints(run.run_id) if steps > missing[0]]
    return Segment(
        run=run,
        start=start,
        checkpoints=tuple(steps for steps in missing if not existing or steps < existing[0]),
    )


def train_segments(ctx: Context, segments: Sequence[Segment]) -> dict[str, HarnessError]:
    """The Trainer of one process. Under torch.distributed it is one of several; the first alone saves."""
    from harness.diffusion.training import train

    compute = ctx.compute
    model = ctx.model(segments[0].run.dataset.model)
    failed: dict[str, HarnessError] = {}
    train(
        (_job(ctx, model, segment, failed) for segment in segments),
        model,
        at_once=_at_once(ctx, model, segments),
        checkpointing=compute.gradient_checkpointing,
        compiled=compute.compile,
    )
    return failed


def _at_once(ctx: Context, model: "Model", segments: Sequence[Segment]) -> int:
    match ctx.compute.pack:
        case "off":
            return 1
        case "auto":
            from harness.diffusion.training.autotune import runs_at_once

            runs = [segment.run for segment in segments]
            return runs_at_once(runs, model, checkpointing=ctx.compute.gradient_checkpointing)
        case number:
            return number


def _job(ctx: Context, model: "Model", segment: Segment, failed: dict[str, HarnessError]) -> "Job":
    """A segment as training takes it: its checkpoints go into the store."""
    from harness.diffusion.training.checkpoint import Checkpoint
    from harness.diffusion.training.run_state import Job

    run, workspace, compute = segment.run, ctx.workspace, ctx.compute
    passing: list[Artifact] = []  # checkpoints that are no trial's checkpoint, made here, the oldest first

    def save(checkpoint: Checkpoint, seconds: float) -> None:
        artifact = workspace.checkpoint(run.run_id, checkpoint.step)
        about = {"run": _run_json(run), "step": checkpoint.step, "from_step": segment.start}
        with artifact.build(**about, train_seconds=seconds) as folder:
            checkpoint.write(folder)
            metadata = _adapter_metadata(run, checkpoint.step)
            model.save_adapter(checkpoint.adapter, run.adapter, folder, metadata)
            if checkpoint.ema:
                model.save_adapter(checkpoint.ema, run.adapter, folder / EMA, metadata)
        if checkpoint.step not in run.checkpoints:
            passing.append(artifact)
        while len(passing) > compute.keep_checkpoints:
            passing.pop(0).remove()
        ctx.go_on()

    def ended(error: HarnessError | None) -> None:
        if error is not None:
            failed[run.run_id] = error

    resume = workspace.checkpoint(run.run_id, segment.start)
    return Job(
        run=_until(run, segment.checkpoints),
        images=workspace.dataset(run.dataset.dataset_id).fetch(),
        prior=None if run.prior is None else workspace.dataset(run.prior.dataset_id).fetch(),
        latents=tuple(latent_files(ctx, run)),
        resume=Checkpoint.read(resume.fetch()) if segment.start else None,
        save=save,
        save_at=lambda step: step % compute.checkpoint_every == 0 or ctx.stop(),
        report=lambda _step, _loss: ctx.report("training_steps", 1),
        ended=ended,
    )


def _until(run: TrainingRun, checkpoints: tuple[int, ...]) -> TrainingRun:
    """The run up to the last of these checkpoints. A schedule that depends on its length keeps that."""
    steps = run.training.steps if run.training.schedule.depends_on_length else checkpoints[-1]
    training = run.training.model_validate({**run.training.model_dump(), "steps": steps})
    return replace(run, training=training, checkpoints=checkpoints)


def _run_json(run: TrainingRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "dataset_id": run.dataset.dataset_id,
        "model": run.dataset.model.model_dump(mode="json"),
        "recipe": run.dataset.recipe.model_dump(mode="json"),
        "adapter": run.adapter.model_dump(mode="json"),
        "training": run.training.model_dump(mode="json", exclude={"steps"}),
    }


def _adapter_metadata(run: TrainingRun, step: int) -> dict[str, str]:
    described = {**_run_json(run), "step": step}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in described.items()}


def check_adapter(ctx: Context, adapter: ResolvedAdapter) -> None:
    """Raise DamagedArtifact if a trained adapter is damaged. Given files are checked with the sweep."""
    if adapter.run_id is not None and adapter.steps is not None:
        ctx.check_whole(ctx.workspace.checkpoint(adapter.run_id, adapter.steps), concerned=is_adapter)


def adapter_path(workspace: Workspace, adapter: ResolvedAdapter) -> Path:
    """The file of an adapter that was given as one, or the folder that its training run saved it in.

    One of the hub is downloaded unless it was before. Raises ConfigError where it is not there.
    """
    if adapter.hub is not None:
        return hub_file(adapter.hub)
    if adapter.run_id is None or adapter.steps is None:
        assert adapter.file is not None
        return adapter.file
    folder = workspace.checkpoint(adapter.run_id, adapter.steps).fetch(is_adapter)
    return folder / EMA if adapter.weights == "ema" else folder
