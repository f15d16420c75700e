"""Each thing a sweep needs, made unless the store has it: datasets, snapshots, pictures, scores.

Every function here is safe to call twice, from two processes at once, and after a kill: it looks, claims,
looks again, and makes only what is missing.
"""

import io
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pandas as pd

from harness.errors import StageError
from harness.generation.plan import Chunk, missing_chunks
from harness.metrics import metric_fingerprint
from harness.metrics.spec import MetricSpec
from harness.models.model import DrawSettings
from harness.models.spec import ModelSpec
from harness.recipes.spec import FolderRecipe
from harness.spec.base import Frozen
from harness.spec.expand import Cell, Draw, DrawAdapter, Plan, TrainingRun
from harness.workspace import EMA, Stage, Workspace

if TYPE_CHECKING:
    from harness.metrics.score import Scorer
    from harness.models.model import Model

Kind = Literal["dataset_pictures", "training_steps", "pictures", "trials"]
Report = Callable[[Kind, int], None]

TRAINING_RECORD = "training_state.json"  # in a snapshot
TABLES = IMAGES, SCORES = "images.parquet", "scores.parquet"  # of a chunk's pictures, and of its scores
PICTURES_AT_ONCE = 8  # where nothing is known of the model, as when missing pictures are counted


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a training run, trained in one go: from a checkpoint (0: afresh) to its last snapshot."""

    run_id: str
    start: int
    snapshots: tuple[int, ...]


class Trainer(Protocol):
    """Trains a segment and leaves its snapshots in the store: in this process, or in several at once."""

    def __call__(self, bench: "Bench", segment: Segment) -> None:
        """Train; the datasets are there, and nobody else trains this run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a worker needs to make things: the plan, the store, and how fast to go about it."""

    plan: Plan
    workspace: Workspace
    report: Report
    trainer: Trainer | None = None  # null: in this process

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
            model, recipe = bench.model(dataset.model), dataset.recipe
            settings = (
                None
                if isinstance(recipe, FolderRecipe)
                else DrawSettings(steps=recipe.steps, refiner_start=recipe.refiner_start)
            )
            about = {"model": _json(dataset.model), "recipe": _json(recipe)}
            with stage.build(**about) as folder:
                build_dataset(
                    recipe,
                    model,
                    folder,
                    report=lambda count: bench.report("dataset_pictures", count),
                    batch_size=_pictures_at_once(bench, model, settings),
                )
    return stage.path


def _ensure_whole_dataset(bench: Bench, dataset_id: str) -> None:
    """The folder, its pictures as they were drawn: training is not to learn from damaged ones."""
    stage = bench.workspace.dataset(dataset_id)
    ensure_dataset(bench, dataset_id)
    if _taken_away(bench.workspace, stage, ("dataset", dataset_id), _any_file):
        ensure_dataset(bench, dataset_id)


def _taken_away(
    workspace: Workspace, stage: Stage, claim: tuple[str, str], concerned: Callable[[str], bool]
) -> bool:
    """True where the files concerned were damaged: the stage is gone then, and can be made again."""
    if stage.whole(concerned):
        return False
    with workspace.claim(*claim):
        if stage.done and not stage.whole(concerned):
            stage.remove()
    return True


def _any_file(name: str) -> bool:
    return True


def _is_training_state(name: str) -> bool:
    return name.startswith("training_state.")


def _is_adapter(name: str) -> bool:
    return not _is_training_state(name)


def ensure_snapshots(bench: Bench, run_id: str) -> None:
    """All snapshots that the plan asks of a run, continuing from the nearest one that exists."""
    run = bench.plan.runs[run_id]
    if not missing_snapshots(bench.workspace, run):
        return
    for dataset in run.datasets:
        _ensure_whole_dataset(bench, dataset.dataset_id)
    with bench.workspace.claim("run", run_id):
        while missing := missing_snapshots(bench.workspace, run):
            segment = _segment(bench.workspace, run, missing)
            before = bench.workspace.snapshot(run_id, segment.start)
            if segment.start and not before.whole(_is_training_state):
                before.remove()
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

    resume = workspace.snapshot(run.run_id, segment.start).path
    train(
        _until(run, segment.snapshots),
        model,
        pictures=workspace.dataset(run.dataset.dataset_id).path,
        prior=None if run.prior is None else workspace.dataset(run.prior.dataset_id).path,
        resume=Checkpoint.read(resume) if segment.start else None,
        save=save,
        save_at=lambda step: step % compute.checkpoint_every == 0,
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
        "model": _json(run.dataset.model),
        "recipe": _json(run.dataset.recipe),
        "adapter": _json(run.adapter),
        "training": run.training.model_dump(mode="json", exclude={"steps"}),
    }


def draw_facts(draw: Draw) -> dict[str, Any]:
    """What decides how long a picture takes; what decides the picture stands in its file."""
    return {
        "steps": draw.steps,
        "refiner_start": draw.refiner_start,
        "scheduler": draw.scheduler,
        "size": draw.size,
        "adapters": len(draw.adapters),
    }


def _json(spec: Frozen) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def _adapter_metadata(run: TrainingRun, step: int) -> dict[str, str]:
    described = {**_run_json(run), "step": step}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in described.items()}


def ensure_pictures(bench: Bench, draw: Draw, cells: tuple[Cell, ...]) -> None:
    """The pictures of these cells, and what they need: adapters first, then chunk after chunk."""
    if not missing_pictures(bench, draw, cells):
        return
    for adapter in draw.adapters:
        _ensure_whole_adapter(bench, adapter)
    with bench.workspace.claim("draw", draw.draw_id):
        from harness.generation.generate import draw_cells, draw_settings

        for stage in bench.workspace.image_chunks(draw.draw_id):
            if not stage.whole(lambda name: name == IMAGES):
                stage.remove()
        model = bench.model(draw.model)
        at_once = _pictures_at_once(bench, model, draw_settings(draw))
        for chunk in missing_pictures(bench, draw, cells, at_once):
            stage = bench.workspace.images(draw.draw_id, chunk.chunk_id)
            one_colour: list[str] = []
            with stage.build(model=_json(draw.model), draw=draw_facts(draw), one_colour=one_colour) as folder:
                one_colour += draw_cells(
                    draw, chunk.cells, model, lambda a: adapter_path(bench.workspace, a), folder
                )
            bench.report("pictures", len(chunk.cells))


def _ensure_whole_adapter(bench: Bench, adapter: DrawAdapter) -> None:
    """What the adapter's training saved, as it was saved. A file that was given is checked in the plan."""
    if adapter.run_id is None or adapter.steps is None:
        return
    stage = bench.workspace.snapshot(adapter.run_id, adapter.steps)
    ensure_snapshots(bench, adapter.run_id)
    if _taken_away(bench.workspace, stage, ("run", adapter.run_id), _is_adapter):
        ensure_snapshots(bench, adapter.run_id)


def adapter_path(workspace: Workspace, adapter: DrawAdapter) -> Path:
    """The file of an adapter that was given as one, or the folder that its training run saved it in."""
    if adapter.run_id is None or adapter.steps is None:
        assert adapter.file is not None
        return adapter.file
    folder = workspace.snapshot(adapter.run_id, adapter.steps).path
    return folder / EMA if adapter.weights == "ema" else folder


def _pictures_at_once(bench: Bench, model: "Model", settings: DrawSettings | None) -> int:
    """How many pictures are drawn in one batch: as told, or as many as the model has memory for."""
    if settings is None:
        return PICTURES_AT_ONCE
    return bench.plan.sweep.compute.batch_size or model.pictures_at_once(settings)


def missing_pictures(
    bench: Bench, draw: Draw, cells: tuple[Cell, ...], at_once: int = PICTURES_AT_ONCE
) -> list[Chunk]:
    """The cells that have no picture yet, in the chunks they will be drawn in.

    Pictures whose table is damaged are missing.
    """
    have: set[str] = set()
    for stage in bench.workspace.image_chunks(draw.draw_id):
        with suppress(StageError):
            have.update(read_parquet(stage, IMAGES)["image_id"])
    return missing_chunks(cells, have, at_once)


def drawn_images(workspace: Workspace, draw_id: str) -> pd.DataFrame:
    """Rows of all pictures of a draw, `path` relative to the workspace; empty when there are none.

    Raises StageError where a table is damaged.
    """
    frames = []
    for stage in workspace.image_chunks(draw_id):
        frame = read_parquet(stage, IMAGES)
        folder = workspace.relative(stage.path)
        frames.append(frame.assign(path=[f"{folder}/{name}" for name in frame["path"]]))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def read_parquet(stage: Stage, name: str) -> pd.DataFrame:
    """A table of a stage. Raises StageError where it is not as it was written."""
    return pd.read_parquet(io.BytesIO(stage.read(name)))


def ensure_scores(bench: Bench, draw: Draw) -> bool:
    """Every metric's scores of every picture of a draw; what a chunk lacks is computed in one pass.

    False where pictures to be scored were damaged: they are gone, and to be drawn again first.
    """
    for chunk in bench.workspace.image_chunks(draw.draw_id):
        if not missing_metrics(bench, chunk):
            continue
        if _taken_away(bench.workspace, chunk, ("draw", draw.draw_id), _any_file):
            return False
        with bench.workspace.claim("draw", draw.draw_id):
            missing = missing_metrics(bench, chunk)
            if missing:
                _score(bench, chunk, missing)
    return True


def take_away_damaged(bench: Bench) -> int:
    """Remove what the sweep's tables are read from and is damaged; how many stages were.

    That is tables and training records. Pictures and adapters are looked at when they are used.
    """
    workspace, damaged = bench.workspace, 0
    for run_id in bench.plan.runs:
        for snapshot in workspace.snapshots(run_id).values():
            damaged += _taken_away(workspace, snapshot, ("run", run_id), lambda name: name == TRAINING_RECORD)
    for draw_id in bench.plan.draws:
        for chunk in workspace.image_chunks(draw_id):
            scores = [workspace.scores(metric_name(m), chunk) for m in bench.plan.sweep.metrics]
            for stage in (chunk, *(stage for stage in scores if stage.done)):
                damaged += _taken_away(workspace, stage, ("draw", draw_id), lambda name: name in TABLES)
    return damaged


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
    images = read_parquet(chunk, IMAGES)
    table = _resident_scorer(metrics).score(images, chunk.path)
    for metric in metrics:
        with bench.workspace.scores(metric_name(metric), chunk).build() as folder:
            table[table["metric"] == metric.kind].to_parquet(folder / SCORES, index=False)
