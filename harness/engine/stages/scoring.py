"""Scores, made unless the store has them; and what concerns all tables and training records of a sweep."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import pandas as pd

from harness.config.plan.plan import Plan
from harness.config.schema.metric import DiversityMetric, DriftMetric, MetricConfig
from harness.engine.stages.context import Context, resident_scorer
from harness.engine.stages.sampling import IMAGES, Wanted, image_ids, read_parquet
from harness.metrics import metric_fingerprint
from harness.results import tables
from harness.store.artifact import Artifact
from harness.store.training_record import RECORD
from harness.store.workspace import Workspace

SCORES = "scores.parquet"  # of a chunk's images, by one metric
RECORDS = (IMAGES, SCORES, RECORD)  # what the tables of a sweep are read from


def make_scores(ctx: Context, wanted: Sequence[Wanted], metrics: tuple[MetricConfig, ...]) -> None:
    """Every metric's scores of the images of these cells, and of what else their chunks hold."""
    unscored: list[tuple[Artifact, tuple[MetricConfig, ...]]] = []
    for arm, cells in wanted:
        ids = {cell.image_id for cell in cells}
        for chunk in ctx.workspace.image_chunks(arm.arm_id):
            missing = missing_metrics(ctx.workspace, chunk, metrics)
            if missing and not ids.isdisjoint(image_ids(chunk)):
                unscored.append((chunk, missing))
    ctx.check_whole(*(chunk for chunk, _ in unscored))
    for chunk, missing in unscored:
        ctx.go_on()
        _score(ctx, chunk, missing)


@contextmanager
def listed(plan: Plan, workspace: Workspace) -> Iterator[None]:
    """For a block that asks for all artifacts of a sweep, and reads all its tables and training records.

    From a bucket they are fetched many at once.
    """
    with workspace.listing():
        workspace.fetch(_recorded(plan, workspace), lambda name: name in RECORDS)
        yield


def _recorded(plan: Plan, workspace: Workspace) -> Iterator[Artifact]:
    for run_id in plan.runs:
        yield from workspace.checkpoints(run_id).values()
    for arm_id in plan.arms:
        for chunk in workspace.image_chunks(arm_id):
            scores = (workspace.scores(metric_folder(metric), chunk) for metric in plan.sweep.metrics)
            yield from (chunk, *(artifact for artifact in scores if artifact.done))


def discard_corrupt_tables(plan: Plan, workspace: Workspace) -> int:
    """Remove the artifacts of which a table or a training record is damaged; returns how many.

    Images and adapters are verified when they are used.
    """
    damaged = [
        artifact for artifact in _recorded(plan, workspace) if not artifact.whole(RECORDS.__contains__)
    ]
    for artifact in damaged:
        artifact.remove()
    return len(damaged)


def missing_metrics(
    workspace: Workspace, chunk: Artifact, metrics: Sequence[MetricConfig]
) -> tuple[MetricConfig, ...]:
    """The metrics that have not scored a chunk, one of those that differ in name alone."""
    by_folder = {metric_folder(metric): metric for metric in metrics}
    return tuple(m for folder, m in by_folder.items() if not workspace.scores(folder, chunk).done)


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
