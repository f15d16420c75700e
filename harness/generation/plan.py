"""Which pictures are drawn together. The pair key (prompt_id, seed) is born with the cell, in `spec`."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from harness.spec.expand import Cell
from harness.spec.fingerprint import fingerprint


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Cells of one draw that are drawn in one batch and stored in one folder, named by what it holds."""

    chunk_id: str
    cells: tuple[Cell, ...]


def missing_chunks(cells: Sequence[Cell], have: Collection[str], batch_size: int) -> list[Chunk]:
    """The cells whose image_id is not among `have`, in order, `batch_size` at a time.

    Every chunk but the last is full. So where finished chunks are what is had, the missing ones come out
    as they would have without the interruption, and each picture keeps its neighbours.
    """
    missing = [cell for cell in cells if cell.image_id not in have]
    return [
        Chunk(chunk_id=fingerprint("chunk", images=[cell.image_id for cell in group]), cells=group)
        for group in _groups(missing, batch_size)
    ]


def _groups(cells: Sequence[Cell], size: int) -> Iterator[tuple[Cell, ...]]:
    remaining = iter(cells)
    while group := tuple(islice(remaining, size)):
        yield group
