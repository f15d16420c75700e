"""Pictures, made unless the store has them; several workers may draw one draw at the same time.

A picture belongs to a share of its draw by its id alone. Whoever draws holds the shares that its batch is of,
and no others. So however many work at a control or at the selected trial's test pictures, whichever sweeps
they are of and whatever fits into their batches, each picture is drawn once, and nobody waits while there is
something left to draw.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.config.plan.plan import Cell, Draw
from harness.diffusion.sampling.generate import chunk_of
from harness.engine.stages.context import Bench
from harness.engine.stages.encodings import ensure_texts
from harness.engine.stages.training import adapter_path, ensure_whole_adapter
from harness.errors import StageError
from harness.store.artifact import Stage
from harness.store.workspace import SHARES

if TYPE_CHECKING:
    from harness.diffusion.models.model import DrawSettings, Model


IMAGES = "images.parquet"  # of a chunk: a row for each picture

Wanted = tuple[Draw, tuple[Cell, ...]]


def ensure_pictures(bench: Bench, draw: Draw, cells: tuple[Cell, ...]) -> None:
    """The pictures of these cells, and what they need: adapters first, then batch after batch."""
    ensure_all_pictures(bench, [(draw, cells)])


def ensure_all_pictures(bench: Bench, wanted: Sequence[Wanted]) -> None:
    """The pictures of several draws, whose rows share batches; what others draw meanwhile is waited for."""
    wanted = _still_missing(bench, wanted)
    for adapter in dict.fromkeys(adapter for draw, _ in wanted for adapter in draw.adapters):
        ensure_whole_adapter(bench, adapter)
    for draw, _ in wanted:
        _tidy_up(bench, draw)
    while wanted:
        for model, settings, together in _alike(bench, wanted):
            _draw_what_is_free(bench, model, settings, together)
        if wanted := _still_missing(bench, wanted):  # then somebody else is at it, or was
            draw, cells = wanted[0]
            with bench.workspace.claim_share(draw.draw_id, share_of(cells[0])):
                pass


def missing_pictures(bench: Bench, draw: Draw, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells that have no picture yet, in order. Pictures whose table is damaged are missing."""
    have: set[str] = set()
    for stage in bench.workspace.image_chunks(draw.draw_id):
        with suppress(StageError):
            have.update(read_arrow(stage, IMAGES)["image_id"].to_pylist())
    return tuple(cell for cell in cells if cell.image_id not in have)


def share_of(cell: Cell) -> int:
    """The share of its draw that a picture is drawn with: 0 to SHARES − 1, the same in every sweep."""
    return int(cell.image_id[-8:], 16) % SHARES


def draw_facts(draw: Draw) -> dict[str, Any]:
    """What decides how long a picture takes; what decides the picture stands in its file."""
    return {
        "steps": draw.steps,
        "refiner_start": draw.refiner_start,
        "scheduler": draw.scheduler,
        "size": draw.size,
        "adapters": len(draw.adapters),
    }


def read_parquet(stage: Stage, name: str) -> pd.DataFrame:
    """A table of a stage. Raises StageError where it is not as it was written."""
    frame: pd.DataFrame = read_arrow(stage, name).to_pandas()
    return frame


def read_arrow(stage: Stage, name: str) -> pa.Table:
    """The same before it is a frame, which takes ten times as long: for thousands of small tables."""
    return pq.read_table(pa.BufferReader(stage.read(name)))


def _still_missing(bench: Bench, wanted: Sequence[Wanted]) -> list[Wanted]:
    found = ((draw, missing_pictures(bench, draw, cells)) for draw, cells in wanted)
    return [(draw, cells) for draw, cells in found if cells]


def _tidy_up(bench: Bench, draw: Draw) -> None:
    """Away with pictures of which the table is damaged, and with what a killed builder left."""
    claim = ("draw", draw.draw_id)
    for stage in bench.workspace.image_chunks(draw.draw_id):
        if bench.workspace.take_away_damaged(stage, claim, lambda name: name == IMAGES):
            bench.report("made again", 1)
    bench.workspace.clear_left_overs_if_free(*claim)


def _alike(bench: Bench, wanted: Sequence[Wanted]) -> Iterator[tuple["Model", "DrawSettings", list[Wanted]]]:
    """The draws by what all rows of a batch share; the model knows their prompts."""
    from harness.diffusion.sampling.generate import draw_settings

    alike: dict[Any, list[Wanted]] = {}
    for draw, cells in wanted:
        alike.setdefault((draw.model, draw_settings(draw)), []).append((draw, cells))
    for (spec, settings), together in alike.items():
        model = bench.model(spec)
        texts = [
            text for draw, cells in together for text in (draw.negative, *(cell.prompt for cell in cells))
        ]
        ensure_texts(bench, model, texts)
        yield model, settings, together


@dataclass(frozen=True)
class _Held:
    """Cells of a share that this worker holds; let go of once they are drawn."""

    claim: ExitStack
    draw: Draw
    cells: deque[Cell]


def _draw_what_is_free(
    bench: Bench, model: "Model", settings: "DrawSettings", wanted: Sequence[Wanted]
) -> None:
    """Batch after batch, until all that is missing is held by others."""
    at_once = bench.pictures_at_once(model, settings)
    shares = _free_shares(bench, wanted)
    with ExitStack() as everything:
        held: deque[_Held] = deque()
        while True:
            bench.go_on()
            while sum(len(one.cells) for one in held) < at_once and (share := next(shares, None)):
                everything.push(share.claim)
                held.append(share)
            if not held:
                return
            batch: list[tuple[Draw, Cell]] = []
            for one in held:
                while one.cells and len(batch) < at_once:
                    batch.append((one.draw, one.cells.popleft()))
            _draw_batch(bench, model, batch)
            while held and not held[0].cells:
                held.popleft().claim.close()


def _free_shares(bench: Bench, wanted: Sequence[Wanted]) -> Iterator[_Held]:
    """The shares that can be had, one after the other, with what is missing of them then."""
    for draw, cells in wanted:
        for share in sorted({share_of(cell) for cell in cells}):
            of_share = [cell for cell in cells if share_of(cell) == share]
            with ExitStack() as claim:
                free = claim.enter_context(bench.workspace.claim_share_if_free(draw.draw_id, share))
                if free and (missing := missing_pictures(bench, draw, of_share)):
                    yield _Held(claim.pop_all(), draw, deque(missing))


def _draw_batch(bench: Bench, model: "Model", batch: Sequence[tuple[Draw, Cell]]) -> None:
    """One batch; what it has of each draw is a stage of its own."""
    from harness.diffusion.sampling.generate import Part, draw_cells

    with ExitStack() as stages:
        parts, facts = [], []
        for draw_id, of_draw in groupby(batch, key=lambda one: one[0].draw_id):
            draws, cells = zip(*of_draw, strict=True)
            chunk = chunk_of(cells)
            facts.append(made := dict[str, Any]())  # known once they are drawn
            about = {"model": draws[0].model.model_dump(mode="json"), "draw": draw_facts(draws[0])}
            stage = bench.workspace.images(draw_id, chunk.chunk_id)
            folder = stages.enter_context(stage.build(**about, made=made))
            parts.append(Part(draw=draws[0], cells=chunk.cells, folder=folder))
        drawn = draw_cells(parts, model, lambda adapter: adapter_path(bench.workspace, adapter))
        for made, of_part in zip(facts, drawn, strict=True):
            made.update(of_part)
    bench.report("pictures", len(batch))
