"""Scores, made unless the store has them; and what concerns all tables and training records of a sweep.

The functions of all stages are safe to call twice, from two processes at once, and after a kill.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import get_args

import pandas as pd

from harness.config.plan.plan import Plan, ResolvedArm
from harness.config.schema.evaluation import Split
from harness.config.schema.metric import DiversityMetric, DriftMetric, MetricConfig
from harness.engine.stages.context import Context, resident_scorer
from harness.engine.stages.sampling import IMAGES, ensure_images, image_ids, read_parquet
from harness.metrics import metric_fingerprint
from harness.results import tables
from harness.store.artifact import Artifact
from harness.store.training_record import RECORD
from harness.store.workspace import Workspace

SCORES = "scores.parquet"  # of a chunk's images, by one metric
TABLES = (IMAGES, SCORES)
RECORDS = (*TABLES, RECORD)


def ensure_scores(ctx: Context, arm: ResolvedArm) -> None:
    """Every metric's scores of every image of a draw; what a chunk lacks is computed in one pass.

    Damaged images are generated again first, dev and test alike, whichever split the caller is at.
    """
    while damaged := [chunk for chunk in _unscored(ctx, arm) if not chunk.whole()]:
        lost = frozenset[str]().union(*map(image_ids, damaged))
        for chunk in damaged:
            if ctx.workspace.discard_corrupt(chunk, ("arm", arm.arm_id)):
                ctx.report("made again", 1)
        cells = (cell for split in get_args(Split) for cell in ctx.plan.cells(arm, split))
        ensure_images(ctx, arm, tuple(cell for cell in cells if cell.image_id in lost))
    for chunk in _unscored(ctx, arm):
        with ctx.workspace.claim("scores", f"{arm.arm_id}-{chunk.path.name}"):
            missing = missing_metrics(ctx, chunk)
            if missing:
                _score(ctx, chunk, missing)


def _unscored(ctx: Context, arm: ResolvedArm) -> list[Artifact]:
    return [chunk for chunk in ctx.workspace.image_chunks(arm.arm_id) if missing_metrics(ctx, chunk)]


@contextmanager
def surveyed(plan: Plan, workspace: Workspace) -> Iterator[None]:
    """For a block that looks at all stages of a sweep, and reads all its tables and training records.

    Where the store lies elsewhere they are fetched many at once.
    """
    with workspace.survey():
        workspace.fetch(_recorded(plan, workspace), lambda name: name in RECORDS)
        yield


def _recorded(plan: Plan, workspace: Workspace) -> Iterator[Artifact]:
    for run_id in plan.runs:
        yield from workspace.checkpoints(run_id).values()
    for arm_id in plan.arms:
        for chunk in workspace.image_chunks(arm_id):
            scores = (workspace.scores(metric_folder(metric), chunk) for metric in plan.sweep.metrics)
            yield from (chunk, *(artifact for artifact in scores if artifact.done))


def is_table(name: str) -> bool:
    """Of a stage of images or scores, what the sweep's tables are read from."""
    return name in TABLES


def discard_corrupt_tables(ctx: Context) -> int:
    """Remove what the sweep's tables are read from and is damaged; how many stages were.

    That is tables and training records. Images and adapters are looked at when they are used.
    """
    workspace, damaged = ctx.workspace, 0
    for run_id in ctx.plan.runs:
        for checkpoint in workspace.checkpoints(run_id).values():
            damaged += workspace.discard_corrupt(checkpoint, ("run", run_id), lambda name: name == RECORD)
    for arm_id in ctx.plan.arms:
        for chunk in workspace.image_chunks(arm_id):
            for metric in ctx.plan.sweep.metrics:
                scores = workspace.scores(metric_folder(metric), chunk)
                if scores.done:
                    damaged += workspace.discard_corrupt(scores, ("scores", scores.path.name), is_table)
            damaged += workspace.discard_corrupt(chunk, ("arm", arm_id), is_table)
    return damaged


def missing_metrics(ctx: Context, chunk: Artifact) -> tuple[MetricConfig, ...]:
    """The metrics that have not scored a chunk, one of those that differ in name alone."""
    metrics = {metric_folder(metric): metric for metric in ctx.plan.sweep.metrics}
    return tuple(m for folder, m in metrics.items() if not ctx.workspace.scores(folder, chunk).done)


@cache
def metric_folder(metric: MetricConfig) -> str:
    """A metric's folder in the store: its kind, and the fingerprint of its version and weights."""
    return f"{folder_kind(metric)}-{metric_fingerprint(metric)}"


def folder_kind(metric: MetricConfig) -> str:
    """The kind as folders have it. Distances are taken from embeddings, which several metrics may share."""
    return "embedding" if isinstance(metric, DriftMetric | DiversityMetric) else metric.kind


def _score(ctx: Context, chunk: Artifact, metrics: tuple[MetricConfig, ...]) -> None:
    images = read_parquet(chunk, IMAGES)
    scored = resident_scorer(metrics).score(images, chunk.fetch())
    for metric, rows in zip(metrics, scored, strict=True):
        with ctx.workspace.scores(metric_folder(metric), chunk).build() as folder:
            schema = tables.EMBEDDINGS if folder_kind(metric) == "embedding" else tables.SCORES
            tables.write_table(folder / SCORES, pd.DataFrame(rows, columns=schema.names), schema)
