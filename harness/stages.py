"""Each thing a sweep needs, made unless the store has it: datasets, snapshots, pictures, scores.

Every function here is safe to call twice, from two processes at once, and after a kill: it looks, claims,
looks again, and makes only what is missing.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from harness.generation.plan import Chunk, missing_chunks
from harness.metrics import metric_fingerprint
from harness.metrics.spec import MetricSpec
from harness.models.spec import ModelSpec
from harness.spec.expand import Cell, Draw, DrawAdapter, Plan, TrainingRun
from harness.workspace import Stage, Workspace

if TYPE_CHECKING:
    from harness.metrics.score import Scorer
    from harness.models.model import Model

Kind = Literal["dataset_pictures", "training_steps", "pictures", "trials"]
Report = Callable[[Kind, int], None]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a worker needs to make things: the plan, the store, and how fast to go about it."""

    plan: Plan
    workspace: Workspace
    report: Report

    def model(self, spec: ModelSpec) -> "Model":
        """The model, loaded once per process and kept for the next task."""
        return _resident_model(spec)


@lru_cache(maxsize=1)
def _resident_model(spec: ModelSpec) -> "Model":
    from harness.models import load_model

    return load_model(spec)


@lru_cache(maxsize=4)
def _resident_scorer(metrics: tuple[MetricSpec, ...]) -> "Scorer":
    from harness.metrics import build_metrics

    return build_metrics(metrics, device=None)


def ensure_dataset(bench: Bench, dataset_id: str) -> Path:
    """The folder of a recipe's pictures."""
    stage = bench.workspace.dataset(dataset_id)
    if stage.done:
        return stage.path
    with bench.workspace.claim("dataset", dataset_id):
        if not stage.done:
            from harness.recipes import build_dataset

            dataset = bench.plan.datasets[dataset_id]
            with stage.build(recipe=dataset.recipe.model_dump(mode="json")) as folder:
                build_dataset(
                    dataset.recipe,
                    bench.model(dataset.model),
                    folder,
                    report=lambda count: bench.report("dataset_pictures", count),
                    batch_size=bench.plan.sweep.compute.batch_size,
                )
    return stage.path


def ensure_snapshots(bench: Bench, run_id: str) -> None:
    """All snapshots that the plan asks of a run, continuing from the nearest one that exists."""
    run = bench.plan.runs[run_id]
    if not missing_snapshots(bench.workspace, run):
        return
    dataset = ensure_dataset(bench, run.dataset.dataset_id)
    with bench.workspace.claim("run", run_id):
        while missing := missing_snapshots(bench.workspace, run):
            _train_to(bench, run, dataset, missing)


def missing_snapshots(workspace: Workspace, run: TrainingRun) -> list[int]:
    """Steps at which the run has no finished snapshot yet, ascending."""
    return [steps for steps in run.snapshots if not workspace.snapshot(run.run_id, steps).done]


def resume_step(workspace: Workspace, run: TrainingRun, before: int) -> int:
    """The last finished checkpoint before `before` steps; 0 to start afresh."""
    return max((steps for steps in workspace.snapshots(run.run_id) if steps < before), default=0)


def _train_to(bench: Bench, run: TrainingRun, dataset: Path, missing: list[int]) -> None:
    """Train from the last checkpoint before the first missing snapshot, up to the next one that exists."""
    from harness.training import train
    from harness.training.checkpoint import Checkpoint

    workspace, model = bench.workspace, bench.model(run.dataset.model)
    start = resume_step(workspace, run, missing[0])
    existing = [steps for steps in workspace.snapshots(run.run_id) if steps > missing[0]]
    ahead = tuple(steps for steps in missing if not existing or steps < existing[0])
    started = time.monotonic()

    def save(checkpoint: Checkpoint) -> None:
        stage = workspace.snapshot(run.run_id, checkpoint.step)
        seconds = time.monotonic() - started
        with stage.build(
            run=_run_json(run), step=checkpoint.step, from_step=start, train_seconds=seconds
        ) as folder:
            checkpoint.write(folder)
            model.save_adapter(
                checkpoint.adapter, run.adapter, folder, _adapter_metadata(run, checkpoint.step)
            )

    every = bench.plan.sweep.compute.checkpoint_every
    train(
        _until(run, ahead),
        model,
        dataset,
        resume=Checkpoint.read(workspace.snapshot(run.run_id, start).path) if start else None,
        save=save,
        save_at=lambda step: step % every == 0,
        report=lambda _step, _loss: bench.report("training_steps", 1),
    )


def _until(run: TrainingRun, snapshots: tuple[int, ...]) -> TrainingRun:
    training = run.training.model_validate({**run.training.model_dump(), "steps": snapshots[-1]})
    return TrainingRun(
        run_id=run.run_id, dataset=run.dataset, adapter=run.adapter, training=training, snapshots=snapshots
    )


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


def ensure_pictures(bench: Bench, draw: Draw, cells: tuple[Cell, ...]) -> None:
    """The pictures of these cells, and what they need: adapters first, then chunk after chunk."""
    if not missing_pictures(bench, draw, cells):
        return
    for adapter in draw.adapters:
        ensure_snapshots(bench, adapter.run_id)
    with bench.workspace.claim("draw", draw.draw_id):
        from harness.generation.generate import draw_cells

        def adapter_folder(adapter: DrawAdapter) -> Path:
            return bench.workspace.snapshot(adapter.run_id, adapter.steps).path

        for chunk in missing_pictures(bench, draw, cells):
            stage = bench.workspace.images(draw.draw_id, chunk.chunk_id)
            with stage.build() as folder:
                draw_cells(draw, chunk.cells, bench.model(draw.model), adapter_folder, folder)
            bench.report("pictures", len(chunk.cells))


def missing_pictures(bench: Bench, draw: Draw, cells: tuple[Cell, ...]) -> list[Chunk]:
    """The cells that have no picture yet, in the chunks they will be drawn in."""
    drawn = drawn_images(bench.workspace, draw.draw_id)
    have = set(drawn["image_id"]) if len(drawn) else set()
    return missing_chunks(cells, have, bench.plan.sweep.compute.batch_size)


def drawn_images(workspace: Workspace, draw_id: str) -> pd.DataFrame:
    """Rows of all pictures of a draw, `path` relative to the workspace; empty when there are none."""
    frames = []
    for stage in workspace.image_chunks(draw_id):
        frame = pd.read_parquet(stage.path / "images.parquet")
        folder = workspace.relative(stage.path)
        frames.append(frame.assign(path=[f"{folder}/{name}" for name in frame["path"]]))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def ensure_scores(bench: Bench, draw: Draw) -> None:
    """Every metric's scores of every picture of a draw; what a chunk lacks is computed in one pass."""
    for chunk in bench.workspace.image_chunks(draw.draw_id):
        if not missing_metrics(bench, chunk):
            continue
        with bench.workspace.claim("draw", draw.draw_id):
            missing = missing_metrics(bench, chunk)
            if missing:
                _score(bench, chunk, missing)


def missing_metrics(bench: Bench, chunk: Stage) -> tuple[MetricSpec, ...]:
    """The metrics that have not scored a chunk."""
    return tuple(
        m for m in bench.plan.sweep.metrics if not bench.workspace.scores(metric_name(m), chunk).done
    )


@cache
def metric_name(metric: MetricSpec) -> str:
    """A metric's folder in the store: its kind, and the fingerprint of its version and weights."""
    return f"{metric.kind}-{metric_fingerprint(metric)}"


def _score(bench: Bench, chunk: Stage, metrics: tuple[MetricSpec, ...]) -> None:
    images = pd.read_parquet(chunk.path / "images.parquet")
    table = _resident_scorer(metrics).score(images, chunk.path)
    for metric in metrics:
        with bench.workspace.scores(metric_name(metric), chunk).build() as folder:
            table[table["metric"] == metric.kind].to_parquet(folder / "scores.parquet", index=False)
