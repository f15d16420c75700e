"""Pictures and their scores, made unless the store has them. What they need is in `training_stages.py`.

Every function here is safe to call twice, from two processes at once, and after a kill: it looks, claims,
looks again, and makes only what is missing.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.bench import PICTURES_AT_ONCE, Bench, resident_scorer
from harness.encoded_stages import ensure_texts
from harness.errors import StageError
from harness.generation.plan import Chunk, missing_chunks
from harness.metrics import metric_fingerprint
from harness.metrics.spec import MetricSpec
from harness.spec.expand import Cell, Draw, Plan
from harness.stage import Stage
from harness.training_stages import adapter_path, ensure_whole_adapter
from harness.workspace import Workspace

if TYPE_CHECKING:
    from harness.models.model import Model

TRAINING_RECORD = "training_state.json"  # in a snapshot
TABLES = IMAGES, SCORES = "images.parquet", "scores.parquet"  # of a chunk's pictures, and of its scores
RECORDS = (*TABLES, TRAINING_RECORD)


Wanted = tuple[Draw, tuple[Cell, ...]]


def ensure_pictures(bench: Bench, draw: Draw, cells: tuple[Cell, ...]) -> None:
    """The pictures of these cells, and what they need: adapters first, then chunk after chunk."""
    ensure_all_pictures(bench, [(draw, cells)])


def ensure_all_pictures(bench: Bench, wanted: Sequence[Wanted]) -> None:
    """The pictures of several draws: first of those that nobody else draws, then of the others."""
    workspace = bench.workspace
    wanted = [(draw, cells) for draw, cells in wanted if missing_pictures(bench, draw, cells)]
    for adapter in dict.fromkeys(adapter for draw, _ in wanted for adapter in draw.adapters):
        ensure_whole_adapter(bench, adapter)
    with ExitStack() as claims:
        free = {
            draw_id
            for draw_id in dict.fromkeys(draw.draw_id for draw, _ in wanted)
            if claims.enter_context(workspace.claim_if_free("draw", draw_id))
        }
        for draw_id in free:
            workspace.clear_left_overs("draw", draw_id)
        _draw_claimed(bench, [one for one in wanted if one[0].draw_id in free])
    for draw, cells in wanted:
        if draw.draw_id not in free:
            with workspace.claim("draw", draw.draw_id):
                _draw_claimed(bench, [(draw, cells)])


def _draw_claimed(bench: Bench, wanted: Sequence[Wanted]) -> None:
    """Chunk after chunk; where one leaves room in a batch, another draw's goes along."""
    from harness.generation.generate import draw_settings

    alike: dict[Any, list[tuple[Draw, Chunk]]] = {}  # by what all rows of a batch share
    for draw, cells in wanted:
        for stage in bench.workspace.image_chunks(draw.draw_id):
            if not stage.whole(lambda name: name == IMAGES):
                stage.remove()
                bench.report("made again", 1)
        model, settings = bench.model(draw.model), draw_settings(draw)
        ensure_texts(bench, model, [draw.negative, *(cell.prompt for cell in cells)])
        at_once = bench.pictures_at_once(model, settings)
        chunks = missing_pictures(bench, draw, cells, at_once)
        alike.setdefault((draw.model, settings, at_once), []).extend((draw, chunk) for chunk in chunks)
    for (model_spec, _, at_once), together in alike.items():
        for batch in filled_batches(together, at_once):
            bench.go_on()
            _draw_batch(bench, bench.model(model_spec), batch)


def filled_batches(chunks: Sequence[tuple[Draw, Chunk]], at_once: int) -> list[list[tuple[Draw, Chunk]]]:
    """Whole chunks, in order, together as long as a batch has room for the next."""
    batches: list[list[tuple[Draw, Chunk]]] = []
    room = 0
    for draw, chunk in chunks:
        if len(chunk.cells) > room:
            batches.append([])
            room = at_once
        batches[-1].append((draw, chunk))
        room -= len(chunk.cells)
    return batches


def _draw_batch(bench: Bench, model: "Model", batch: Sequence[tuple[Draw, Chunk]]) -> None:
    """One batch; every chunk of it is a stage of its own."""
    from harness.generation.generate import Part, draw_cells

    with ExitStack() as stages:
        parts, of_one_colour = [], []
        for draw, chunk in batch:
            of_one_colour.append(one_colour := list[str]())
            about = {"model": draw.model.model_dump(mode="json"), "draw": draw_facts(draw)}
            stage = bench.workspace.images(draw.draw_id, chunk.chunk_id)
            folder = stages.enter_context(stage.build(**about, one_colour=one_colour))
            parts.append(Part(draw=draw, cells=chunk.cells, folder=folder))
        drawn = draw_cells(parts, model, lambda adapter: adapter_path(bench.workspace, adapter))
        for one_colour, found in zip(of_one_colour, drawn, strict=True):
            one_colour += found
    bench.report("pictures", sum(len(chunk.cells) for _, chunk in batch))


def draw_facts(draw: Draw) -> dict[str, Any]:
    """What decides how long a picture takes; what decides the picture stands in its file."""
    return {
        "steps": draw.steps,
        "refiner_start": draw.refiner_start,
        "scheduler": draw.scheduler,
        "size": draw.size,
        "adapters": len(draw.adapters),
    }


def missing_pictures(
    bench: Bench, draw: Draw, cells: tuple[Cell, ...], at_once: int = PICTURES_AT_ONCE
) -> list[Chunk]:
    """The cells that have no picture yet, in the chunks they will be drawn in.

    Pictures whose table is damaged are missing.
    """
    have: set[str] = set()
    for stage in bench.workspace.image_chunks(draw.draw_id):
        with suppress(StageError):
            have.update(read_arrow(stage, IMAGES)["image_id"].to_pylist())
    return missing_chunks(cells, have, at_once)


def read_parquet(stage: Stage, name: str) -> pd.DataFrame:
    """A table of a stage. Raises StageError where it is not as it was written."""
    frame: pd.DataFrame = read_arrow(stage, name).to_pandas()
    return frame


def read_arrow(stage: Stage, name: str) -> pa.Table:
    """The same before it is a frame, which takes ten times as long: for thousands of small tables."""
    return pq.read_table(pa.BufferReader(stage.read(name)))


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
        with bench.workspace.claim("draw", draw.draw_id):
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


def take_away_damaged_tables(bench: Bench) -> int:
    """Remove what the sweep's tables are read from and is damaged; how many stages were.

    That is tables and training records. Pictures and adapters are looked at when they are used.
    """
    workspace, damaged = bench.workspace, 0
    for run_id in bench.plan.runs:
        for snapshot in workspace.snapshots(run_id).values():
            damaged += workspace.take_away_damaged(
                snapshot, ("run", run_id), lambda name: name == TRAINING_RECORD
            )
    for draw_id in bench.plan.draws:
        for chunk in workspace.image_chunks(draw_id):
            scores = [workspace.scores(metric_name(m), chunk) for m in bench.plan.sweep.metrics]
            for stage in (chunk, *(stage for stage in scores if stage.done)):
                damaged += workspace.take_away_damaged(stage, ("draw", draw_id), lambda name: name in TABLES)
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
