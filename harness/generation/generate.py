"""Draw the pictures of a chunk and write them with what made them: PNG text chunks and a table of rows."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL.PngImagePlugin import PngInfo

from harness import __version__
from harness.models.model import DrawSettings, Picture, Row, RowAdapter
from harness.models.spec import EmojiModel, ModelSpec
from harness.results import tables
from harness.spec.expand import Cell, Draw, DrawAdapter

if TYPE_CHECKING:
    from harness.models.model import Model

LIBRARIES = ("torch", "diffusers", "transformers", "compel")
ADAPTER_FILE = "pytorch_lora_weights.safetensors"


def draw_cells(
    draw: Draw,
    cells: Sequence[Cell],
    model: "Model",
    adapter_folder: Callable[[DrawAdapter], Path],
    folder: Path,
) -> None:
    """Draw the cells in one batch; write `<image_id>.png` and `images.parquet` into `folder`, in order.

    `path` is the bare file name, `sha256` that of the file, `draw_seconds` a picture's share of the batch,
    and `trial_id` null: which trials a picture belongs to is the plan's to say. Nothing in a picture's file
    depends on the time, so the same cell gives the same bytes. Raises ModelError for what cannot be drawn.
    """
    started = time.perf_counter()
    pictures = model.draw(
        [_row(draw, cell, adapter_folder) for cell in cells],
        DrawSettings(steps=draw.steps, refiner_start=draw.refiner_start),
    )
    seconds = (time.perf_counter() - started) / len(cells)
    adapters = [_about(adapter, adapter_folder(adapter)) for adapter in draw.adapters]
    rows = []
    for cell, picture in zip(cells, pictures, strict=True):
        file = folder / f"{cell.image_id}.png"
        picture.image.save(file, pnginfo=_png_text(draw, cell, picture, adapters))
        rows.append(_image_row(draw, cell, picture, file=file, seconds=seconds))
    tables.write_table(folder / "images.parquet", pd.DataFrame(rows), tables.IMAGES)


def a1111_parameters(
    draw: Draw, cell: Cell, size: tuple[int, int], adapters: Sequence[dict[str, Any]]
) -> str:
    """The `parameters` chunk of AUTOMATIC1111's web UI, so that its readers show how a picture was made."""
    fields: dict[str, object] = {
        "Steps": draw.steps,
        "Sampler": "Euler",
        "CFG scale": _number(draw.guidance),
        "Seed": cell.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": _model_name(draw.model),
    }
    if draw.refiner_start is not None:
        fields["Refiner"] = _refiner_name(draw.model)
        fields["Refiner switch at"] = _number(draw.refiner_start)
    if adapters:
        fields["Lora hashes"] = ", ".join(f"{a['name']}: {a['sha256'][:12]}" for a in adapters)
        fields["Lora scales"] = ", ".join(
            f"{a['name']}: {_number(a['scale'])} {a['branch']}" for a in adapters
        )
    lines = [cell.prompt]
    if draw.negative:
        lines.append(f"Negative prompt: {draw.negative}")
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items())])


def _row(draw: Draw, cell: Cell, adapter_folder: Callable[[DrawAdapter], Path]) -> Row:
    return Row(
        prompt=cell.prompt,
        negative=draw.negative,
        seed=cell.seed,
        guidance=draw.guidance,
        adapters=tuple(
            RowAdapter(path=adapter_folder(adapter), scale=adapter.scale, branch=adapter.branch)
            for adapter in draw.adapters
        ),
    )


def _about(adapter: DrawAdapter, folder: Path) -> dict[str, Any]:
    return {
        **asdict(adapter),
        "name": f"{adapter.run_id}-{adapter.steps}",
        "sha256": _weights_hash(folder / ADAPTER_FILE),
    }


def _weights_hash(path: Path) -> str:
    """The sha256 of a safetensors file without its header: kohya's model hash, which A1111 shows."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _png_text(draw: Draw, cell: Cell, picture: Picture, adapters: Sequence[dict[str, Any]]) -> PngInfo:
    described = {
        "cell": {
            "image_id": cell.image_id,
            "prompt_id": cell.prompt_id,
            "prompt": cell.prompt,
            "seed": cell.seed,
        },
        "draw": {
            "draw_id": draw.draw_id,
            "model": draw.model.model_dump(mode="json"),
            "negative": draw.negative,
            "guidance": draw.guidance,
            "steps": draw.steps,
            "refiner_start": draw.refiner_start,
            "adapters": list(adapters),
        },
        "latent_hash": picture.latent_hash,
        "versions": {"harness": __version__, **{name: metadata.version(name) for name in LIBRARIES}},
    }
    text = PngInfo()
    for key, value in (
        ("parameters", a1111_parameters(draw, cell, picture.image.size, adapters)),
        ("harness", json.dumps(described, sort_keys=True, ensure_ascii=False)),
    ):
        if value.isascii():
            text.add_text(key, value)
        else:
            text.add_itxt(key, value)
    return text


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


def _model_name(spec: ModelSpec) -> str:
    return "emoji" if isinstance(spec, EmojiModel) else spec.source


def _refiner_name(spec: ModelSpec) -> str:
    return "emoji-refiner" if isinstance(spec, EmojiModel) else str(spec.refiner)


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _quoted(value: object) -> str:
    """A value with a comma, colon or line end is written as a JSON string, as the web UI does."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
