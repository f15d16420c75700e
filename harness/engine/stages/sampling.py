"""Images, made unless the store has them. What one batch has of an arm is an artifact, a chunk."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.config.plan.plan import Cell, ResolvedArm
from harness.engine.stages.context import Context
from harness.engine.stages.encodings import read_texts, texts_of_image
from harness.engine.stages.training import adapter_path, check_adapter
from harness.errors import ArtifactError
from harness.results import tables
from harness.store.artifact import Artifact
from harness.store.workspace import Workspace

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model, SamplerSettings


IMAGES = "images.parquet"  # of a chunk: a row for each image

Wanted = tuple[ResolvedArm, tuple[Cell, ...]]


def make_images(ctx: Context, wanted: Sequence[Wanted]) -> None:
    """The images of these cells; rows of several arms share batches. The adapters are there."""
    wanted = [(arm, cells) for arm, cells in _still_missing(ctx, wanted) if cells]
    for adapter in dict.fromkeys(adapter for arm, _ in wanted for adapter in arm.adapters):
        check_adapter(ctx, adapter)
    for model, settings, rows in _alike(ctx, wanted):
        at_once = ctx.images_per_batch(model, settings)
        for first in range(0, len(rows), at_once):
            ctx.go_on()
            _generate_batch(ctx, model, rows[first : first + at_once])


def missing_images(workspace: Workspace, arm: ResolvedArm, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells that have no image yet, in order. Images whose table is damaged are missing."""
    have: set[str] = set()
    for artifact in workspace.image_chunks(arm.arm_id):
        have.update(image_ids(artifact))
    return tuple(cell for cell in cells if cell.image_id not in have)


def image_ids(chunk: Artifact) -> list[str]:
    """The images of a chunk; none if its table is damaged."""
    with suppress(ArtifactError):
        found: list[str] = read_arrow(chunk, IMAGES)["image_id"].to_pylist()
        return found
    return []


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
    """A table of an artifact. Raises ArtifactError if it is not as it was written."""
    frame: pd.DataFrame = read_arrow(artifact, name).to_pandas()
    return frame


def read_arrow(artifact: Artifact, name: str) -> pa.Table:
    """The same before it is a frame, which takes ten times as long: for thousands of small tables."""
    return pq.read_table(pa.BufferReader(artifact.read(name)))


def _still_missing(ctx: Context, wanted: Sequence[Wanted]) -> Iterator[Wanted]:
    for arm, cells in wanted:
        for chunk in ctx.workspace.image_chunks(arm.arm_id):
            if not chunk.whole(lambda name: name == IMAGES):
                chunk.remove()
                ctx.report("made again", 1)
        yield arm, missing_images(ctx.workspace, arm, cells)


def _alike(
    ctx: Context, wanted: Sequence[Wanted]
) -> Iterator[tuple["Model", "SamplerSettings", list[tuple[ResolvedArm, Cell]]]]:
    """The rows by what all of a batch share; the model knows their prompts."""
    from harness.diffusion.sampling.generate import sampler_settings

    alike: dict[Any, list[tuple[ResolvedArm, Cell]]] = {}
    for arm, cells in wanted:
        rows = alike.setdefault((arm.model, sampler_settings(arm)), [])
        rows += [(arm, cell) for cell in cells]
    for (config, settings), together in alike.items():
        model = ctx.model(config)
        texts = {text for arm, cell in together for text in texts_of_image(arm, cell.prompt)}
        read_texts(ctx, model, texts)
        yield model, settings, together


def _generate_batch(ctx: Context, model: "Model", batch: Sequence[tuple[ResolvedArm, Cell]]) -> None:
    """One batch; what it has of each arm is an artifact of its own."""
    from harness.diffusion.sampling.generate import Part, chunk_of, generate_cells

    with ExitStack() as artifacts:
        parts, facts = [], []
        for arm_id, of_arm in groupby(batch, key=lambda one: one[0].arm_id):
            arms, cells = zip(*of_arm, strict=True)
            chunk = chunk_of(cells)
            facts.append(made := dict[str, Any]())  # known once they are generated
            about = {"model": arms[0].model.model_dump(mode="json"), "arm": arm_facts(arms[0])}
            artifact = ctx.workspace.images(arm_id, chunk.chunk_id)
            folder = artifacts.enter_context(artifact.build(**about, made=made))
            parts.append(Part(arm=arms[0], cells=chunk.cells, folder=folder))
        batches = generate_cells(parts, model, lambda adapter: adapter_path(ctx.workspace, adapter))
        for part, made, generated in zip(parts, facts, batches, strict=True):
            tables.write_table(part.folder / IMAGES, pd.DataFrame(generated.rows), tables.IMAGES)
            made.update(generated.made)
    ctx.report("images", len(batch))
