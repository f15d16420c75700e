"""What pictures are drawn with, made unless the store has it: datasets, and the snapshots of training runs.

Every function here is safe to call twice, from two processes at once, and after a kill: it looks, claims,
looks again, and makes only what is missing. What is used is looked at first: damaged, it is made again.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.bench import Bench, Segment
from harness.encoded_stages import ensure_latents
from harness.models.model import DrawSettings
from harness.recipes.spec import Drawn
from harness.spec.expand import DrawAdapter, TrainingRun
from harness.stage import EMA, Stage, is_adapter, is_training_state
from harness.workspace import Workspace


def ensure_dataset(bench: Bench, dataset_id: str) -> Path:
    """The folder of a recipe's pictures."""
    stage = bench.workspace.dataset(dataset_id)
    if stage.done:
        return stage.fetch()
    with bench.workspace.claim("dataset", dataset_id):
        if not stage.done:
            from harness.recipes import build_dataset

            dataset = bench.plan.datasets[dataset_id]
            model, recipe = bench.model(dataset.model), dataset.recipe
            at_once = 1  # somebody's own pictures are not drawn
            if isinstance(recipe, Drawn):
                settings = DrawSettings(steps=recipe.steps, refiner_start=recipe.refiner_start)
                at_once = bench.pictures_at_once(model, settings)
            about = {"model": dataset.model.model_dump(mode="json"), "recipe": recipe.model_dump(mode="json")}
            with stage.build(**about) as folder:
                build_dataset(
                    recipe,
                    model,
                    folder,
                    report=lambda count: bench.report("dataset_pictures", count),
                    batch_size=at_once,
                )
    return stage.fetch()


def _ensure_whole_dataset(bench: Bench, dataset_id: str) -> None:
    """The folder, its pictures as they were drawn: training is not to learn from damaged ones."""
    stage = bench.workspace.dataset(dataset_id)
    ensure_dataset(bench, dataset_id)
    if bench.workspace.take_away_damaged(stage, ("dataset", dataset_id)):
        bench.report("made again", 1)
        ensure_dataset(bench, dataset_id)


def ensure_snapshots(bench: Bench, run_id: str) -> None:
    """All snapshots that the plan asks of a run, continuing from the nearest one that exists."""
    run = bench.plan.runs[run_id]
    if not missing_snapshots(bench.workspace, run):
        return
    for dataset in run.datasets:
        _ensure_whole_dataset(bench, dataset.dataset_id)
    with bench.workspace.claim("run", run_id):
        while missing := missing_snapshots(bench.workspace, run):
            bench.go_on()
            segment = _segment(bench.workspace, run, missing)
            before = bench.workspace.snapshot(run_id, segment.start)
            if segment.start and not before.whole(is_training_state):
                before.remove()
                bench.report("made again", 1)
                continue
            (bench.trainer or train_segment)(bench, segment)


def missing_snapshots(workspace: Workspace, run: TrainingRun) -> list[int]:
    """Steps at which the run has no finished snapshot yet, ascending."""
    return [steps for steps in run.snapshots if not workspace.snapshot(run.run_id, steps).done]


def resume_step(workspace: Workspace, run: TrainingRun, before: int) -> int:
    """The last finished checkpoint before `before` steps; 0 to start afresh."""
    return max((steps for steps in workspace.snapshots(run.run_id) if steps < before), default=0)


def _segment(workspace: Workspace, run: TrainingRun, missing: list[int]) -> Segment:
    """From the last checkpoint before the first missing snapshot, up to the next one that exists."""
    existing = [steps for steps in workspace.snapshots(run.run_id) if steps > missing[0]]
    return Segment(
        run_id=run.run_id,
        start=resume_step(workspace, run, missing[0]),
        snapshots=tuple(steps for steps in missing if not existing or steps < existing[0]),
    )


def train_segment(bench: Bench, segment: Segment) -> None:
    """The Trainer of one process. Under torch.distributed it is one of several; the first alone saves."""
    from harness.training import train
    from harness.training.checkpoint import Checkpoint

    run, workspace, compute = bench.plan.runs[segment.run_id], bench.workspace, bench.plan.sweep.compute
    model = bench.model(run.dataset.model)
    started = time.monotonic()
    passing: list[Stage] = []  # checkpoints that are no trial's snapshot, made here, the oldest first

    def save(checkpoint: Checkpoint) -> None:
        seconds = time.monotonic() - started
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

    resume = workspace.snapshot(run.run_id, segment.start)
    train(
        _until(run, segment.snapshots),
        model,
        pictures=workspace.dataset(run.dataset.dataset_id).fetch(),
        prior=None if run.prior is None else workspace.dataset(run.prior.dataset_id).fetch(),
        latents=ensure_latents(bench, run),
        resume=Checkpoint.read(resume.fetch()) if segment.start else None,
        save=save,
        save_at=lambda step: step % compute.checkpoint_every == 0 or bench.stop(),
        report=lambda _step, _loss: bench.report("training_steps", 1),
        checkpointing=compute.gradient_checkpointing,
        compiled=compute.compile,
    )


def _until(run: TrainingRun, snapshots: tuple[int, ...]) -> TrainingRun:
    """The run up to the last of these snapshots."""
    training = run.training.model_validate({**run.training.model_dump(), "steps": snapshots[-1]})
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
    ensure_snapshots(bench, adapter.run_id)
    if bench.workspace.take_away_damaged(stage, ("run", adapter.run_id), is_adapter):
        bench.report("made again", 1)
        ensure_snapshots(bench, adapter.run_id)


def adapter_path(workspace: Workspace, adapter: DrawAdapter) -> Path:
    """The file of an adapter that was given as one, or the folder that its training run saved it in."""
    if adapter.run_id is None or adapter.steps is None:
        assert adapter.file is not None
        return adapter.file
    folder = workspace.snapshot(adapter.run_id, adapter.steps).fetch(is_adapter)
    return folder / EMA if adapter.weights == "ema" else folder
