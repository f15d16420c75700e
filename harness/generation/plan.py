"""Which pictures are drawn together. The pair key (prompt_id, seed) is born with the cell, in `spec`."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.spec.expand import Cell
from harness.spec.fingerprint import fingerprint


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Cells of one draw that are drawn in one batch and stored in one folder, named by what it holds."""

    chunk_id: str
    cells: tuple[Cell, ...]


def chunk_of(cells: Sequence[Cell]) -> Chunk:
    """These cells, in order."""
    return Chunk(chunk_id=fingerprint("chunk", images=[cell.image_id for cell in cells]), cells=tuple(cells))
