"""Generates an image again from its file's metadata, and compares the pixels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from harness.config.loading.tokens import hub_file, model_digest
from harness.config.plan.plan import Cell, ResolvedAdapter, ResolvedArm
from harness.config.schema.adapter import HubFile
from harness.config.schema.evaluation import MergeConfig, read_guider
from harness.config.schema.model import EmojiModel, ModelConfig, SdxlModel
from harness.diffusion.adapters.adapter import EMA
from harness.diffusion.models import load_model
from harness.diffusion.sampling import png
from harness.diffusion.sampling.generate import generate_row, sampler_settings
from harness.errors import ConfigError, ModelError
from harness.store.artifact import is_adapter
from harness.store.workspace import Workspace

ROUNDING = 2  # levels of 255: products of another number of rows are summed up in another order


@dataclass(frozen=True, kw_only=True)
class RedrawResult:
    """What came of it. `difference` is the largest between the images, in levels of 255.

    `versions` are the libraries that are others than then, as `name: (then, now)`: with them, or on another
    kind of processor, an image may differ by more than ROUNDING.
    """

    output: Path
    equal: bool
    difference: int
    versions: dict[str, tuple[str, str]]

    @property
    def up_to_rounding(self) -> bool:
        """The same image, generated alone instead of in its batch."""
        return self.difference <= ROUNDING


def redraw(image: Path, *, workspace: Path | str | None, output: Path) -> RedrawResult:
    """Generate what the PNG `image` says, with the same text in its file, into `output`.

    Adapters are looked for by their hashes: in `workspace` (null: the one the image lies in), at the path
    they were given by, and beside the image. It is generated alone, so it may differ by ROUNDING from what it
    was in its batch. Raises ConfigError if the file does not say how it was made, ModelError if the model
    or an adapter is not what it was, or is not found.
    """
    if output.resolve() == image.resolve():
        raise ConfigError(f"{output} is the image itself; give another file for the new one")
    was, chunks = _read(image)
    about = _about(image, chunks)
    _check_model(about.arm.model)
    paths = [
        _find(adapter, sha256=sha256, image=image, workspace=workspace)
        for adapter, sha256 in zip(about.arm.adapters, about.hashes, strict=True)
    ]
    drawn = _generate(about, paths)
    pixels_sha256 = png.pixels_hash(drawn)
    now = png.versions()
    text = png.as_json({**about.raw, "pixels_sha256": pixels_sha256, "versions": now})
    png.save(drawn, output, {**chunks, png.HARNESS: text})
    return RedrawResult(
        output=output,
        equal=pixels_sha256 == about.raw["pixels_sha256"],
        difference=_difference(was, drawn),
        versions={n: (then, now[n]) for n, then in about.raw["versions"].items() if now[n] != then},
    )


@dataclass(frozen=True, kw_only=True)
class _About:
    """What an image's file says. `hashes` are those of the adapters' weights, in order."""

    raw: dict[str, Any]
    arm: ResolvedArm
    cell: Cell
    hashes: tuple[str, ...]


def _read(image: Path) -> tuple[Image.Image, dict[str, str]]:
    try:
        with Image.open(image) as opened:
            opened.load()  # text after the pixels is there only then
            text = {str(key): str(value) for key, value in opened.info.items() if isinstance(value, str)}
            chunks = {key: text[key] for key in (png.PARAMETERS, png.HARNESS) if key in text}
            was = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"{image} cannot be read as an image ({error})") from error
    if png.HARNESS not in chunks:
        raise ConfigError(
            f"{image} does not say how it was made: it has no text chunk {png.HARNESS!r}. Give a PNG of a "
            "workspace's images/ as it was written; other programs drop such text when they save"
        )
    return was, chunks


def _about(image: Path, chunks: dict[str, str]) -> _About:
    try:
        raw = json.loads(chunks[png.HARNESS])
        return _About(
            raw=raw,
            arm=_arm_of(raw["arm"]),
            cell=Cell(**raw["cell"], arm_id=raw["arm"]["arm_id"], tags=(), split="test"),
            hashes=tuple(adapter["sha256"] for adapter in raw["arm"]["adapters"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{image}: its text chunk {png.HARNESS!r} is damaged, or of another version of the harness "
            f"({error!r})"
        ) from error


def _arm_of(raw: dict[str, Any]) -> ResolvedArm:
    model: type[EmojiModel] | type[SdxlModel] = EmojiModel if raw["model"]["kind"] == "emoji" else SdxlModel
    return ResolvedArm(
        arm_id=raw["arm_id"],
        arm="redraw",
        model=model.model_validate(raw["model"]),
        negative=raw["negative"],
        guidance=raw["guidance"],
        guidance_interval=None if raw["guidance_interval"] is None else tuple(raw["guidance_interval"]),
        guidance_rescale=raw["guidance_rescale"],
        guider=read_guider(raw["guider"]),
        steps=raw["steps"],
        scheduler=raw["scheduler"],
        size=None if raw["size"] is None else tuple(raw["size"]),
        refiner_start=raw["refiner_start"],
        noise=raw["noise"],
        adapters=tuple(
            ResolvedAdapter(
                run_id=adapter["run_id"],
                steps=adapter["steps"],
                weights=adapter["weights"],
                file=None if adapter["file"] is None else Path(adapter["file"]),
                hub=None if adapter["hub"] is None else HubFile.model_validate(adapter["hub"]),
                digest=adapter["digest"],
                scale=adapter["scale"],
                branch=adapter["branch"],
            )
            for adapter in raw["adapters"]
        ),
        merge=None if raw["merge"] is None else MergeConfig.model_validate(raw["merge"]),
    )


def _check_model(config: ModelConfig) -> None:
    found = model_digest(config) if config.digest is not None else None
    if found != config.digest:
        raise ModelError(
            f"the weights of the model are not those the image was drawn with: their hash is {found}, and "
            f"was {config.digest}"
        )


def _find(adapter: ResolvedAdapter, *, sha256: str, image: Path, workspace: Path | str | None) -> Path:
    """The first place that holds the adapter with these weights."""
    others = []
    places = list(dict.fromkeys(_places(adapter, image, workspace)))
    for place in places:
        if place.is_file() or any(place.glob("*.safetensors")):
            if png.weights_hash(place)[1] == sha256:
                return place
            others.append(place)
    if others:
        raise ModelError(
            f"adapter {others[0]} has other weights than the image was drawn with; their hash was {sha256}"
        )
    raise ModelError(
        f"the adapter with hash {sha256} is not found; looked for it in "
        f"{', '.join(str(place) for place in places)}. Give the workspace that it was trained in, or put its "
        "file beside the image"
    )


def _places(adapter: ResolvedAdapter, image: Path, workspace: Path | str | None) -> Sequence[Path]:
    beside = image.resolve().parent
    if adapter.hub is not None:
        return [hub_file(adapter.hub)]
    if adapter.file is not None:
        return [adapter.file, beside / adapter.file.name]
    assert adapter.run_id is not None and adapter.steps is not None
    name = f"{adapter.run_id}-{adapter.steps}" + ("-ema" if adapter.weights == "ema" else "")
    roots: Sequence[Path | str] = [p for p in beside.parents if (p / "adapters").is_dir()]
    if workspace is not None:
        roots = [workspace]
    artifacts = [Workspace(root).checkpoint(adapter.run_id, adapter.steps) for root in roots]
    folders = [artifact.fetch(is_adapter) if artifact.done else artifact.path for artifact in artifacts]
    inside = [folder / EMA if adapter.weights == "ema" else folder for folder in folders]
    return [*inside, beside / f"{name}.safetensors", beside / name]


def _generate(about: _About, paths: Sequence[Path]) -> Image.Image:
    model = load_model(about.arm.model)
    (image,) = model.generate([generate_row(about.arm, about.cell, paths)], sampler_settings(about.arm))
    return image.image


def _difference(one: Image.Image, other: Image.Image) -> int:
    if one.size != other.size:
        return 255
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())
