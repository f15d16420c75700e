"""Draw the pictures of a chunk and write them with what made them: PNG text chunks and a table of rows.

Which pictures are drawn together. The pair key (prompt_id, seed) is born with the cell, in `spec`.

Generation: from the cells of a plan to pictures that say how they were made.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd

from harness.config.plan.plan import Cell, Draw, DrawAdapter
from harness.config.schema.base import fingerprint
from harness.diffusion.models.model import DrawSettings, Picture, Row, RowAdapter
from harness.diffusion.sampling import png
from harness.results import tables

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Part:
    """Cells of one draw, and the folder that their pictures are written into."""

    draw: Draw
    cells: Sequence[Cell]
    folder: Path


class Made(TypedDict):
    """Facts of a part's pictures.

    `one_colour`: the image_ids of those that are of one colour, pictures like any other, but something is
    likely to be wrong. `draw_seconds`: all of them together.
    """

    one_colour: list[str]
    draw_seconds: float


def draw_cells(
    parts: Sequence[Part], model: "Model", adapter_path: Callable[[DrawAdapter], Path]
) -> list[Made]:
    """Draw the cells of all parts in one batch, each row with its own adapters, on one base.

    Into each part's folder go `<image_id>.png` and `images.parquet`, in order. `adapter_path` gives an
    adapter's file, or the folder it was saved in. In the table `path` is the bare file name, `sha256` that of
    the file, `draw_seconds` a picture's share of the batch, and `trial_id` null: which trials a picture
    belongs to is the plan's to say. Nothing in a picture's file depends on the time, so the same parts give
    the same bytes; among other parts a picture is the same up to rounding. The parts' draws have the same
    settings. Returns what each part has come to. Raises ModelError for what cannot be drawn.
    """
    started = time.perf_counter()
    settings = draw_settings(parts[0].draw)
    assert all(draw_settings(part.draw) == settings for part in parts)
    paths = [[adapter_path(adapter) for adapter in part.draw.adapters] for part in parts]
    rows = [
        draw_row(part.draw, cell, own) for part, own in zip(parts, paths, strict=True) for cell in part.cells
    ]
    pictures = iter(model.draw(rows, settings))
    seconds = (time.perf_counter() - started) / len(rows)
    return [
        _write(part, list(islice(pictures, len(part.cells))), own, model, seconds=seconds)
        for part, own in zip(parts, paths, strict=True)
    ]


def _write(
    part: Part, pictures: Sequence[Picture], paths: Sequence[Path], model: "Model", *, seconds: float
) -> Made:
    """The files of one part. `seconds` are those of one picture."""
    draw, cells = part.draw, part.cells
    adapters = [png.about_adapter(a, path) for a, path in zip(draw.adapters, paths, strict=True)]
    rows = []
    for cell, picture in zip(cells, pictures, strict=True):
        chunks = png.described(
            draw,
            cell,
            picture.image,
            latent_hash=picture.latent_hash,
            sampler=model.scheduler,
            adapters=adapters,
        )
        file = part.folder / f"{cell.image_id}.png"
        png.save(picture.image, file, chunks)
        rows.append(_image_row(draw, cell, picture, file=file, seconds=seconds))
    tables.write_table(part.folder / "images.parquet", pd.DataFrame(rows), tables.IMAGES)
    return Made(
        one_colour=[c.image_id for c, p in zip(cells, pictures, strict=True) if _is_of_one_colour(p)],
        draw_seconds=seconds * len(cells),
    )


def _is_of_one_colour(picture: Picture) -> bool:
    pixels_HW3 = np.asarray(picture.image)
    return bool((pixels_HW3 == pixels_HW3[0, 0]).all())


def draw_settings(draw: Draw) -> DrawSettings:
    """What all pictures of a draw share."""
    return DrawSettings(
        steps=draw.steps,
        refiner_start=draw.refiner_start,
        guidance_rescale=draw.guidance_rescale,
        scheduler=draw.scheduler,
        size=draw.size,
    )


def draw_row(draw: Draw, cell: Cell, paths: Sequence[Path]) -> Row:
    """One picture of a draw. `paths` are those of its adapters, in order."""
    return Row(
        prompt=cell.prompt,
        negative=draw.negative,
        seed=cell.seed,
        guidance=draw.guidance,
        adapters=tuple(
            RowAdapter(path=path, scale=adapter.scale, branch=adapter.branch)
            for adapter, path in zip(draw.adapters, paths, strict=True)
        ),
        merge=draw.merge,
    )


def _image_row(draw: Draw, cell: Cell, picture: Picture, *, file: Path, seconds: float) -> dict[str, Any]:
    return {
        "image_id": cell.image_id,
        "draw_id": draw.draw_id,
        "arm": draw.arm,
        "trial_id": None,
        "prompt_id": cell.prompt_id,
        "prompt": cell.prompt,
        "tags": list(cell.tags),
        "split": cell.split,
        "seed": cell.seed,
        "negative": draw.negative,
        "guidance": draw.guidance,
        "steps": draw.steps,
        "refiner_start": draw.refiner_start,
        "latent_hash": picture.latent_hash,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "path": file.name,
        "width": picture.image.width,
        "height": picture.image.height,
        "draw_seconds": seconds,
    }


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Cells of one draw that are drawn in one batch and stored in one folder, named by what it holds."""

    chunk_id: str
    cells: tuple[Cell, ...]


def chunk_of(cells: Sequence[Cell]) -> Chunk:
    """These cells, in order."""
    return Chunk(chunk_id=fingerprint("chunk", images=[cell.image_id for cell in cells]), cells=tuple(cells))
