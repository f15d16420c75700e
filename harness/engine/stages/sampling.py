"""Images, made unless the store has them; several workers can generate one arm at the same time.

An image belongs to a shard of its arm by its id alone. A worker locks the shards of its batch and no others,
so each image is generated once, whichever sweeps want it and whatever the batch size.
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

from harness.config.plan.plan import Cell, ResolvedArm
from harness.engine.stages.context import Context
from harness.engine.stages.encodings import ensure_texts, texts_of_image
from harness.engine.stages.training import adapter_path, ensure_whole_adapter
from harness.errors import ArtifactError
from harness.results import tables
from harness.store.artifact import Artifact
from harness.store.workspace import SHARES

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model, SamplerSettings


IMAGES = "images.parquet"  # of a chunk: a row for each image

Wanted = tuple[ResolvedArm, tuple[Cell, ...]]


def ensure_images(ctx: Context, arm: ResolvedArm, cells: tuple[Cell, ...]) -> None:
    """The images of these cells, and what they need: adapters first, then batch after batch."""
    ensure_all_images(ctx, [(arm, cells)])


def ensure_all_images(ctx: Context, wanted: Sequence[Wanted]) -> None:
    """The images of several draws, whose rows share batches; what others draw meanwhile is waited for."""
    wanted = _still_missing(ctx, wanted)
    for adapter in dict.fromkeys(adapter for arm, _ in wanted for adapter in arm.adapters):
        ensure_whole_adapter(ctx, adapter)
    for arm, _ in wanted:
        _tidy_up(ctx, arm)
    while wanted:
        for model, settings, together in _alike(ctx, wanted):
            _draw_what_is_free(ctx, model, settings, together)
        if wanted := _still_missing(ctx, wanted):  # then another worker has them, or had
            arm, cells = wanted[0]
            with ctx.workspace.claim_share(arm.arm_id, share_of(cells[0])):
                pass


def missing_images(ctx: Context, arm: ResolvedArm, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells that have no image yet, in order. Images whose table is damaged are missing."""
    have: set[str] = set()
    for artifact in ctx.workspace.image_chunks(arm.arm_id):
        with suppress(ArtifactError):
            have.update(read_arrow(artifact, IMAGES)["image_id"].to_pylist())
    return tuple(cell for cell in cells if cell.image_id not in have)


def image_ids(chunk: Artifact) -> frozenset[str]:
    """The images of a chunk that may be damaged: by its files, its manifest and its table, as far as read."""
    names = set(chunk.contents())
    with suppress(ArtifactError):
        names |= chunk.manifest()["files"].keys()
    with suppress(ArtifactError):
        names |= set(read_arrow(chunk, IMAGES)["path"].to_pylist())
    return frozenset(name.removesuffix(".png") for name in names)


def share_of(cell: Cell) -> int:
    """The share of its draw that an image is drawn with: 0 to SHARES − 1, the same in every sweep."""
    return int(cell.image_id[-8:], 16) % SHARES


def arm_facts(arm: ResolvedArm) -> dict[str, Any]:
    """What decides how long an image takes; what decides the image stands in its file."""
    return {
        "steps": arm.steps,
        "refiner_start": arm.refiner_start,
        "scheduler": arm.scheduler,
        "size": arm.size,
        "adapters": len(arm.adapters),
    }


def read_parquet(artifact: Artifact, name: str) -> pd.DataFrame:
    """A table of a stage. Raises ArtifactError where it is not as it was written."""
    frame: pd.DataFrame = read_arrow(artifact, name).to_pandas()
    return frame


def read_arrow(artifact: Artifact, name: str) -> pa.Table:
    """The same before it is a frame, which takes ten times as long: for thousands of small tables."""
    return pq.read_table(pa.BufferReader(artifact.read(name)))


def _still_missing(ctx: Context, wanted: Sequence[Wanted]) -> list[Wanted]:
    found = ((arm, missing_images(ctx, arm, cells)) for arm, cells in wanted)
    return [(arm, cells) for arm, cells in found if cells]


def _tidy_up(ctx: Context, arm: ResolvedArm) -> None:
    """Away with images of which the table is damaged, and with what a killed builder left."""
    claim = ("arm", arm.arm_id)
    for artifact in ctx.workspace.image_chunks(arm.arm_id):
        if ctx.workspace.discard_corrupt(artifact, claim, lambda name: name == IMAGES):
            ctx.report("made again", 1)
    ctx.workspace.clear_partial_if_free(*claim)


def _alike(
    ctx: Context, wanted: Sequence[Wanted]
) -> Iterator[tuple["Model", "SamplerSettings", list[Wanted]]]:
    """The draws by what all rows of a batch share; the model knows their prompts."""
    from harness.diffusion.sampling.generate import sampler_settings

    alike: dict[Any, list[Wanted]] = {}
    for arm, cells in wanted:
        alike.setdefault((arm.model, sampler_settings(arm)), []).append((arm, cells))
    for (config, settings), together in alike.items():
        model = ctx.model(config)
        texts = {
            text for arm, cells in together for cell in cells for text in texts_of_image(arm, cell.prompt)
        }
        ensure_texts(ctx, model, texts)
        yield model, settings, together


@dataclass(frozen=True)
class _Held:
    """Cells of a shard that this worker has locked; released once they are generated."""

    claim: ExitStack
    arm: ResolvedArm
    cells: deque[Cell]


def _draw_what_is_free(
    ctx: Context, model: "Model", settings: "SamplerSettings", wanted: Sequence[Wanted]
) -> None:
    """Batch after batch, until all that is missing is held by others."""
    at_once = ctx.images_per_batch(model, settings)
    shares = _free_shares(ctx, wanted)
    with ExitStack() as everything:
        held: deque[_Held] = deque()
        while True:
            ctx.go_on()
            while sum(len(one.cells) for one in held) < at_once and (share := next(shares, None)):
                everything.push(share.claim)
                held.append(share)
            if not held:
                return
            batch: list[tuple[ResolvedArm, Cell]] = []
            for one in held:
                while one.cells and len(batch) < at_once:
                    batch.append((one.arm, one.cells.popleft()))
            _generate_batch(ctx, model, batch)
            while held and not held[0].cells:
                held.popleft().claim.close()


def _free_shares(ctx: Context, wanted: Sequence[Wanted]) -> Iterator[_Held]:
    """The shares that can be had, one after the other, with what is missing of them then."""
    for arm, cells in wanted:
        for share in sorted({share_of(cell) for cell in cells}):
            of_share = [cell for cell in cells if share_of(cell) == share]
            with ExitStack() as claim:
                free = claim.enter_context(ctx.workspace.claim_share_if_free(arm.arm_id, share))
                if free and (missing := missing_images(ctx, arm, of_share)):
                    yield _Held(claim.pop_all(), arm, deque(missing))


def _generate_batch(ctx: Context, model: "Model", batch: Sequence[tuple[ResolvedArm, Cell]]) -> None:
    """One batch; what it has of each draw is a stage of its own."""
    from harness.diffusion.sampling.generate import Part, chunk_of, generate_cells

    with ExitStack() as artifacts:
        parts, facts = [], []
        for arm_id, of_draw in groupby(batch, key=lambda one: one[0].arm_id):
            arms, cells = zip(*of_draw, strict=True)
            chunk = chunk_of(cells)
            facts.append(made := dict[str, Any]())  # known once they are drawn
            about = {"model": arms[0].model.model_dump(mode="json"), "arm": arm_facts(arms[0])}
            artifact = ctx.workspace.images(arm_id, chunk.chunk_id)
            folder = artifacts.enter_context(artifact.build(**about, made=made))
            parts.append(Part(arm=arms[0], cells=chunk.cells, folder=folder))
        drawn = generate_cells(parts, model, lambda adapter: adapter_path(ctx.workspace, adapter))
        for part, made, generated in zip(parts, facts, drawn, strict=True):
            tables.write_table(part.folder / IMAGES, pd.DataFrame(generated.rows), tables.IMAGES)
            made.update(generated.made)
    ctx.report("images", len(batch))
