"""From the cells of a plan to image files with metadata, batch by batch, and the rows of their table."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from PIL import Image

from harness.config.plan.plan import Cell, ResolvedAdapter, ResolvedArm
from harness.config.schema.base import fingerprint
from harness.config.schema.evaluation import negative_text
from harness.diffusion.degradations import degrade
from harness.diffusion.models.model import GeneratedImage, Row, RowAdapter, SamplerSettings
from harness.diffusion.sampling import png

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model

MEASURED_OF = 8  # one in so many dev images has its effective guidance measured


@dataclass(frozen=True, kw_only=True)
class Part:
    """Cells of one arm, and the folder that their images are written into."""

    arm: ResolvedArm
    cells: Sequence[Cell]
    folder: Path


class Made(TypedDict):
    """Facts of a part's images.

    `one_colour`: the image_ids of those that are of one colour, images like any other, but something is
    likely to be wrong. `generation_seconds`: all of them together.
    """

    one_colour: list[str]
    generation_seconds: float


@dataclass(frozen=True, kw_only=True)
class GeneratedPart:
    """What describes a part's images: a row of the images table for each, in order, and facts of them all."""

    rows: list[dict[str, Any]]
    made: Made


def generate_cells(
    parts: Sequence[Part], model: "Model", adapter_path: Callable[[ResolvedAdapter], Path]
) -> list[GeneratedPart]:
    """Generate the cells of all parts in one batch, each row with its own adapters, on one base.

    Into each part's folder go `<image_id>.png`. `adapter_path` gives an
    adapter's file, or the folder it was saved in. In the rows `path` is the bare file name, `sha256` that of
    the file, `generation_seconds` an image's share of the batch, and `trial_id` null: which trials an image
    belongs to is the plan's to say. Nothing in an image's file depends on the time, so the same parts give
    the same bytes; among other parts an image is the same up to rounding. The parts' arms have the same
    settings. Returns what each part has come to. Raises ModelError for what cannot be generated.
    """
    started = time.perf_counter()
    settings = sampler_settings(parts[0].arm)
    assert all(sampler_settings(part.arm) == settings for part in parts)
    paths = [[adapter_path(adapter) for adapter in part.arm.adapters] for part in parts]
    rows = [
        generate_row(part.arm, cell, own)
        for part, own in zip(parts, paths, strict=True)
        for cell in part.cells
    ]
    images = iter(model.generate(rows, settings))
    seconds = (time.perf_counter() - started) / len(rows)
    return [
        _write(part, list(islice(images, len(part.cells))), own, model, seconds=seconds)
        for part, own in zip(parts, paths, strict=True)
    ]


def _write(
    part: Part, images: Sequence[GeneratedImage], paths: Sequence[Path], model: "Model", *, seconds: float
) -> GeneratedPart:
    """The files of one part. `seconds` are those of one image."""
    arm, cells = part.arm, part.cells
    images = [
        replace(image, image=finished(arm, cell, image.image))
        for cell, image in zip(cells, images, strict=True)
    ]
    adapters = [png.about_adapter(a, path) for a, path in zip(arm.adapters, paths, strict=True)]
    rows = []
    for cell, image in zip(cells, images, strict=True):
        chunks = png.described(
            arm,
            cell,
            image.image,
            latent_hash=image.latent_hash,
            sampler=model.scheduler,
            adapters=adapters,
        )
        file = part.folder / f"{cell.image_id}.png"
        png.save(image.image, file, chunks)
        rows.append(_image_row(arm, cell, image, file=file, seconds=seconds))
    made = Made(
        one_colour=[c.image_id for c, p in zip(cells, images, strict=True) if _is_of_one_colour(p)],
        generation_seconds=seconds * len(cells),
    )
    return GeneratedPart(rows=rows, made=made)


def finished(arm: ResolvedArm, cell: Cell, image: Image.Image) -> Image.Image:
    """The image as the arm has it. What is random of a damage depends on the cell's noise alone."""
    if arm.post is None:
        return image
    rng = np.random.default_rng(cell.noise_seed)
    return degrade(image, arm.post.degrade, severity=arm.post.severity, rng=rng)


def _is_of_one_colour(image: GeneratedImage) -> bool:
    pixels_HW3 = np.asarray(image.image)
    return bool((pixels_HW3 == pixels_HW3[0, 0]).all())


def sampler_settings(arm: ResolvedArm) -> SamplerSettings:
    """What all images of an arm share."""
    return SamplerSettings(
        steps=arm.steps,
        refiner_start=arm.refiner_start,
        guidance_rescale=arm.guidance_rescale,
        scheduler=arm.scheduler,
        size=arm.size,
    )


def generate_row(arm: ResolvedArm, cell: Cell, paths: Sequence[Path]) -> Row:
    """One image of an arm. `paths` are those of its adapters, in order."""
    return Row(
        prompt=cell.prompt,
        negative=arm.negative,
        seed=cell.noise_seed,
        guidance=arm.guidance,
        guidance_interval=arm.guidance_interval,
        guider=arm.guider,
        measured=_is_measured(cell),
        adapters=tuple(
            RowAdapter(path=path, scale=adapter.scale, branch=adapter.branch)
            for adapter, path in zip(arm.adapters, paths, strict=True)
        ),
        merge=arm.merge,
    )


def _is_measured(cell: Cell) -> bool:
    """True for one in eight of the dev images, those of the same prompts and seeds in every arm and sweep."""
    number = int(fingerprint("measured", prompt=cell.prompt, seed=cell.seed), 16)
    return cell.split == "dev" and number % MEASURED_OF == 0


def _image_row(
    arm: ResolvedArm, cell: Cell, image: GeneratedImage, *, file: Path, seconds: float
) -> dict[str, Any]:
    return {
        "image_id": cell.image_id,
        "arm_id": arm.arm_id,
        "arm": arm.arm,
        "trial_id": None,
        "prompt_id": cell.prompt_id,
        "prompt": cell.prompt,
        "tags": list(cell.tags),
        "split": cell.split,
        "seed": cell.seed,
        "negative": negative_text(arm.negative, cell.prompt),
        "guidance": arm.guidance,
        "effective_guidance": image.effective_guidance,
        "orthogonal_share": image.orthogonal_share,
        "steps": arm.steps,
        "refiner_start": arm.refiner_start,
        "latent_hash": image.latent_hash,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "path": file.name,
        "width": image.image.width,
        "height": image.image.height,
        "generation_seconds": seconds,
    }


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Cells of one arm that are generated in one batch and stored in one folder, named by what it holds."""

    chunk_id: str
    cells: tuple[Cell, ...]


def chunk_of(cells: Sequence[Cell]) -> Chunk:
    """These cells, in order."""
    return Chunk(chunk_id=fingerprint("chunk", images=[cell.image_id for cell in cells]), cells=tuple(cells))
