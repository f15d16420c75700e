"""Generates an image again from its file's metadata, and compares the pixels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from harness.config.loading.files import one_line
from harness.config.loading.image_folder import decoded
from harness.config.loading.tokens import hub_file, model_digest
from harness.config.plan.plan import Cell, ResolvedAdapter, ResolvedArm
from harness.config.schema.base import Frozen
from harness.config.schema.evaluation import ArmAdapter, ArmConfig, Prompt, SamplerConfig
from harness.config.schema.model import EmojiModel, ModelConfig, SdxlModel
from harness.diffusion.adapters.adapter import EMA
from harness.diffusion.models import load_model
from harness.diffusion.sampling import png
from harness.diffusion.sampling.generate import finished, generate_row, sampler_settings
from harness.errors import ConfigError, ModelError
from harness.store.artifact import is_adapter, is_inside
from harness.store.workspace import Workspace

ADAPTER_FIELDS = ("scale", "branch", "weights", "file", "hub", "digest")
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
        equal=pixels_sha256 == about.pixels_sha256,
        difference=_difference(was, drawn),
        versions={
            name: (then, now.get(name, "none"))
            for name, then in about.versions.items()
            if now.get(name) != then
        },
    )


@dataclass(frozen=True, kw_only=True)
class _About:
    """What an image's file says. `hashes` are those of the adapters' weights, in order."""

    raw: dict[str, Any]
    arm: ResolvedArm
    cell: Cell
    hashes: tuple[str, ...]
    pixels_sha256: str
    versions: dict[str, str]


def _read(image: Path) -> tuple[Image.Image, dict[str, str]]:
    was, texts = decoded(image, formats=("PNG",))
    if png.HARNESS not in texts:
        raise ConfigError(
            f"{one_line(image)} does not say how it was made: no text chunk {png.HARNESS!r}. Give a PNG "
            "of a workspace's images/ as it was written; other programs drop such text when they save"
        )
    return was, {key: texts[key] for key in (png.PARAMETERS, png.HARNESS) if key in texts}


def _about(image: Path, chunks: dict[str, str]) -> _About:
    try:
        raw = json.loads(chunks[png.HARNESS])
        about = _About(
            raw=raw,
            arm=_arm_of(raw["arm"]),
            cell=_cell_of(raw["cell"], raw["arm"]["arm_id"]),
            hashes=tuple(str(adapter["sha256"]) for adapter in raw["arm"]["adapters"]),
            pixels_sha256=str(raw["pixels_sha256"]),
            versions={str(name): str(version) for name, version in raw["versions"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{one_line(image)}: its text chunk {png.HARNESS!r} is damaged, or of another version of the "
            f"harness ({type(error).__name__}: {one_line(error, 80)})"
        ) from error
    return about


def _cell_of(raw: dict[str, Any], arm_id: Any) -> Cell:
    """Its prompt and its seed, as a sweep could have given them."""
    prompt, seed = _checked(Prompt, {"text": raw["prompt"], "split": "test"}), raw["noise_seed"]
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError("noise_seed must be a whole number from 0 to 2 ** 63 - 1")
    return Cell(**{**raw, "prompt": prompt.text}, arm_id=str(arm_id), tags=(), split="test")


def _arm_of(raw: dict[str, Any]) -> ResolvedArm:
    """Each setting within what a sweep may give, so that a stranger's file asks for nothing else."""
    model: type[EmojiModel] | type[SdxlModel] = EmojiModel if raw["model"]["kind"] == "emoji" else SdxlModel
    sampler = _checked(SamplerConfig, {name: raw[name] for name in SamplerConfig.model_fields})
    given = [{name: adapter[name] for name in ADAPTER_FIELDS} for adapter in raw["adapters"]]
    own = {"name": "redraw", "negative": raw["negative"], "adapters": given, "merge": raw["merge"]}
    arm = _checked(ArmConfig, {**own, "post": raw.get("post")})  # older images have none
    return ResolvedArm(
        arm_id=str(raw["arm_id"]),
        arm=arm.name,
        model=_checked(model, raw["model"]),
        negative=arm.negative,
        **{name: getattr(sampler, name) for name in SamplerConfig.model_fields},
        adapters=tuple(
            ResolvedAdapter(
                **{name: getattr(adapter, name) for name in ADAPTER_FIELDS}, **_trained_by(about, adapter)
            )
            for adapter, about in zip(arm.adapters, raw["adapters"], strict=True)
        ),
        merge=arm.merge,
        post=arm.post,
    )


def _trained_by(raw: dict[str, Any], adapter: ArmAdapter) -> dict[str, Any]:
    """The training run and its checkpoint, which are a folder's name; null for a file."""
    run_id, steps = raw["run_id"], raw["steps"]
    is_run = (
        type(run_id) is str and is_inside(run_id) and "/" not in run_id and type(steps) is int and steps > 0
    )
    if adapter.is_file != (run_id is None) or not (adapter.is_file or is_run):
        raise ValueError("an adapter must be a file, or of a run_id and steps")
    return {"run_id": run_id, "steps": steps}


Kind = TypeVar("Kind", bound=Frozen)


def _checked(kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """What `model_dump` wrote as JSON. Raises pydantic.ValidationError, a ValueError, for anything else."""
    return kind.model_validate_json(json.dumps(fields), strict=True)


def _check_model(config: ModelConfig) -> None:
    found = model_digest(config) if config.digest is not None else None
    if found != config.digest:
        raise ModelError(
            f"the weights of the model are not those the image was drawn with: their hash is {found}, and "
            f"was {one_line(config.digest, 64)}"
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
            f"adapter {one_line(others[0])} has other weights than the image was drawn with; their hash was "
            f"{one_line(sha256, 64)}"
        )
    raise ModelError(
        f"the adapter with hash {one_line(sha256, 64)} is not found; looked for it in "
        f"{', '.join(map(one_line, places))}. Give the workspace that it was trained in, or put its "
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
    return finished(about.arm, about.cell, image.image)


def _difference(one: Image.Image, other: Image.Image) -> int:
    if one.size != other.size:
        return 255
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())
