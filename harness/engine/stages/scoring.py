"""Scores, made unless the store has them; and what concerns all tables and training records of a sweep.

Every function here, in `dataset_stages.py`, `training_stages.py` and `picture_stages.py` is safe to call
twice, from two processes at once, and after a kill: it looks, claims, looks again, and makes only what is
missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from harness.config.plan.plan import Draw, Plan
from harness.config.schema.metric import MetricSpec
from harness.diffusion.training.record import RECORD
from harness.engine.stages.context import Bench, resident_scorer
from harness.engine.stages.sampling import IMAGES, read_parquet
from harness.metrics import metric_fingerprint
from harness.store.artifact import Stage
from harness.store.workspace import Workspace

SCORES = "scores.parquet"  # of a chunk's pictures, by one metric
TABLES = (IMAGES, SCORES)
RECORDS = (*TABLES, RECORD)


def ensure_scores(bench: Bench, draw: Draw) -> bool:
    """Every metric's scores of every picture of a draw; what a chunk lacks is computed in one pass.

    False where pictures to be scored were damaged: they are gone, and to be drawn again first.
    """
    for chunk in bench.workspace.image_chunks(draw.draw_id):
        if not missing_metrics(bench, chunk):
            continue
        if bench.workspace.take_away_damaged(chunk, ("draw", draw.draw_id)):
            bench.report("made again", 1)
            return False
        with bench.workspace.claim("scores", f"{draw.draw_id}-{chunk.path.name}"):
            missing = missing_metrics(bench, chunk)
            if missing:
                _score(bench, chunk, missing)
    return True


@contextmanager
def surveyed(plan: Plan, workspace: Workspace) -> Iterator[None]:
    """For a block that looks at all stages of a sweep, and reads all its tables and training records.

    Where the store lies elsewhere they are fetched many at once.
    """
    with workspace.survey():
        workspace.fetch(_recorded(plan, workspace), lambda name: name in RECORDS)
        yield


def _recorded(plan: Plan, workspace: Workspace) -> Iterator[Stage]:
    for run_id in plan.runs:
        yield from workspace.snapshots(run_id).values()
    for draw_id in plan.draws:
        for chunk in workspace.image_chunks(draw_id):
            scores = (workspace.scores(metric_name(metric), chunk) for metric in plan.sweep.metrics)
            yield from (chunk, *(stage for stage in scores if stage.done))


def is_table(name: str) -> bool:
    """Of a stage of pictures or scores, what the sweep's tables are read from."""
    return name in TABLES


def take_away_damaged_tables(bench: Bench) -> int:
    """Remove what the sweep's tables are read from and is damaged; how many stages were.

    That is tables and training records. Pictures and adapters are looked at when they are used.
    """
    workspace, damaged = bench.workspace, 0
    for run_id in bench.plan.runs:
        for snapshot in workspace.snapshots(run_id).values():
            damaged += workspace.take_away_damaged(snapshot, ("run", run_id), lambda name: name == RECORD)
    for draw_id in bench.plan.draws:
        for chunk in workspace.image_chunks(draw_id):
            for metric in bench.plan.sweep.metrics:
                scores = workspace.scores(metric_name(metric), chunk)
                if scores.done:
                    damaged += workspace.take_away_damaged(scores, ("scores", scores.path.name), is_table)
            damaged += workspace.take_away_damaged(chunk, ("draw", draw_id), is_table)
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
    table = resident_scorer(metrics).score(images, chunk.fetch())
    for metric in metrics:
        with bench.workspace.scores(metric_name(metric), chunk).build() as folder:
            table[table["metric"] == metric.kind].to_parquet(folder / SCORES, index=False)
