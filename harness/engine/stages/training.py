"""What pictures are drawn with, made unless the store has it: the snapshots of training runs.

Every function here is safe to call twice, from two processes at once, and after a kill: it looks, claims,
looks again, and makes only what is missing. What is used is looked at first: damaged, it is made again.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.plan.packing import packs
from harness.config.plan.plan import DrawAdapter, TrainingRun
from harness.diffusion.adapters.adapter import EMA
from harness.engine.stages.context import Bench, Segment
from harness.engine.stages.datasets import ensure_whole_dataset
from harness.engine.stages.encodings import ensure_latents
from harness.errors import HarnessError
from harness.store.artifact import Stage, is_adapter, is_training_state
from harness.store.workspace import Workspace

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model
    from harness.diffusion.training.run_state import Job


def ensure_snapshots(bench: Bench, run_ids: Sequence[str]) -> dict[str, HarnessError]:
    """All snapshots that the plan asks of these runs, each continuing from the nearest one that exists.

    Runs that can be are trained together. Gives what ended early, by its run; the others are whole.
    """
    runs = [bench.plan.runs[run_id] for run_id in run_ids]
    runs = [run for run in runs if missing_snapshots(bench.workspace, run)]
    for dataset_id in dict.fromkeys(dataset.dataset_id for run in runs for dataset in run.datasets):
        ensure_whole_dataset(bench, dataset_id)
    failed: dict[str, HarnessError] = {}
    for pack in packs(runs, 1 if bench.plan.sweep.compute.pack == "off" else max(1, len(runs))):
        _train_claimed(bench, pack, failed)
    return failed


def _train_claimed(bench: Bench, pack: Sequence[TrainingRun], failed: dict[str, HarnessError]) -> None:
    """Those that nobody else trains, together; then the others, each once it is free."""
    workspace = bench.workspace
    free: list[TrainingRun] = []
    elsewhere: list[TrainingRun] = []
    with ExitStack() as claims:
        for run in pack:
            is_free = claims.enter_context(workspace.claim_if_free("run", run.run_id, at_once=True))
            (free if is_free else elsewhere).append(run)
        for run in free:
            workspace.clear_left_overs("run", run.run_id)
        _train(bench, free, failed)
    for run in elsewhere:
        with workspace.claim("run", run.run_id):
            _train(bench, [run], failed)


def _train(bench: Bench, runs: Sequence[TrainingRun], failed: dict[str, HarnessError]) -> None:
    """Until every run has its snapshots, or has failed. The runs are claimed."""
    while segments := [
        segment
        for run in runs
        if run.run_id not in failed and (segment := _next_segment(bench, run)) is not None
    ]:
        bench.go_on()
        failed.update((bench.trainer or train_segments)(bench, segments))
        bench.go_on()


def missing_snapshots(workspace: Workspace, run: TrainingRun) -> list[int]:
    """Steps at which the run has no finished snapshot yet, ascending."""
    return [steps for steps in run.snapshots if not workspace.snapshot(run.run_id, steps).done]


def resume_step(workspace: Workspace, run: TrainingRun, before: int) -> int:
    """The last finished checkpoint before `before` steps; 0 to start afresh."""
    return max((steps for steps in workspace.snapshots(run.run_id) if steps < before), default=0)


def _next_segment(bench: Bench, run: TrainingRun) -> Segment | None:
    """From the last whole checkpoint before the first missing snapshot, up to the next one that exists."""
    workspace = bench.workspace
    missing = missing_snapshots(workspace, run)
    if not missing:
        return None
    while start := resume_step(workspace, run, missing[0]):
        before = workspace.snapshot(run.run_id, start)
        if before.whole(is_training_state):
            break
        before.remove()
        bench.report("made again", 1)
    existing = [steps for steps in workspace.snapshots(run.run_id) if steps > missing[0]]
    return Segment(
        run_id=run.run_id,
        start=start,
        snapshots=tuple(steps for steps in missing if not existing or steps < existing[0]),
    )


def train_segments(bench: Bench, segments: Sequence[Segment]) -> dict[str, HarnessError]:
    """The Trainer of one process. Under torch.distributed it is one of several; the first alone saves."""
    from harness.diffusion.training import train

    compute = bench.plan.sweep.compute
    model = bench.model(bench.plan.runs[segments[0].run_id].dataset.model)
    failed: dict[str, HarnessError] = {}
    train(
        (_job(bench, model, segment, failed) for segment in segments),
        model,
        at_once=_at_once(bench, model, segments),
        checkpointing=compute.gradient_checkpointing,
        compiled=compute.compile,
    )
    return failed


def _at_once(bench: Bench, model: "Model", segments: Sequence[Segment]) -> int:
    match bench.plan.sweep.compute.pack:
        case "off":
            return 1
        case "auto":
            from harness.diffusion.training.autotune import runs_at_once

            runs = [bench.plan.runs[segment.run_id] for segment in segments]
            return runs_at_once(runs, model, checkpointing=bench.plan.sweep.compute.gradient_checkpointing)
        case number:
            return number


def _job(bench: Bench, model: "Model", segment: Segment, failed: dict[str, HarnessError]) -> "Job":
    """A segment as training takes it: its checkpoints go into the store."""
    from harness.diffusion.training.checkpoint import Checkpoint
    from harness.diffusion.training.run_state import Job

    run, workspace, compute = bench.plan.runs[segment.run_id], bench.workspace, bench.plan.sweep.compute
    passing: list[Stage] = []  # checkpoints that are no trial's snapshot, made here, the oldest first

    def save(checkpoint: Checkpoint, seconds: float) -> None:
        stage = workspace.snapshot(run.run_id, checkpoint.step)
        about = {"run": _run_json(run), "step": checkpoint.step, "from_step": segment.start}
        with stage.build(**about, train_seconds=seconds) as folder:
            checkpoint.write(folder)
            metadata = _adapter_metadata(run, checkpoint.step)
            model.save_adapter(checkpoint.adapter, run.adapter, folder, metadata)
            if checkpoint.ema:
                model.save_adapter(checkpoint.ema, run.adapter, folder / EMA, metadata)
        if checkpoint.step not in run.snapshots:
            passing.append(stage)
        while len(passing) > compute.keep_checkpoints:
            passing.pop(0).remove()
        bench.go_on()

    def ended(error: HarnessError | None) -> None:
        if error is not None:
            failed[run.run_id] = error

    resume = workspace.snapshot(run.run_id, segment.start)
    return Job(
        run=_until(run, segment.snapshots),
        pictures=workspace.dataset(run.dataset.dataset_id).fetch(),
        prior=None if run.prior is None else workspace.dataset(run.prior.dataset_id).fetch(),
        latents=tuple(ensure_latents(bench, run)),
        resume=Checkpoint.read(resume.fetch()) if segment.start else None,
        save=save,
        save_at=lambda step: step % compute.checkpoint_every == 0 or bench.stop(),
        report=lambda _step, _loss: bench.report("training_steps", 1),
        ended=ended,
    )


def _until(run: TrainingRun, snapshots: tuple[int, ...]) -> TrainingRun:
    """The run up to the last of these snapshots. A schedule that depends on its length keeps that."""
    steps = run.training.steps if run.training.schedule.depends_on_length else snapshots[-1]
    training = run.training.model_validate({**run.training.model_dump(), "steps": steps})
    return replace(run, training=training, snapshots=snapshots)


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


def ensure_whole_adapter(bench: Bench, adapter: DrawAdapter) -> None:
    """What the adapter's training saved, as it was saved. A file that was given is checked in the plan."""
    if adapter.run_id is None or adapter.steps is None:
        return
    stage = bench.workspace.snapshot(adapter.run_id, adapter.steps)
    _ensure_trained(bench, adapter.run_id)
    if bench.workspace.take_away_damaged(stage, ("run", adapter.run_id), is_adapter):
        bench.report("made again", 1)
        _ensure_trained(bench, adapter.run_id)


def _ensure_trained(bench: Bench, run_id: str) -> None:
    for error in ensure_snapshots(bench, [run_id]).values():
        raise error


def adapter_path(workspace: Workspace, adapter: DrawAdapter) -> Path:
    """The file of an adapter that was given as one, or the folder that its training run saved it in."""
    if adapter.run_id is None or adapter.steps is None:
        assert adapter.file is not None
        return adapter.file
    folder = workspace.snapshot(adapter.run_id, adapter.steps).fetch(is_adapter)
    return folder / EMA if adapter.weights == "ema" else folder
