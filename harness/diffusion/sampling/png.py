"""Metadata of an image file, for A1111's and ComfyUI's readers and for `harness redraw`.

`parameters` is the text of AUTOMATIC1111's web UI, which ComfyUI and galleries read. `harness` is JSON and
complete; weights of models and adapters are named by their hashes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from harness import __version__
from harness.config.loading.files import one_line
from harness.config.plan.plan import Cell, ResolvedAdapter, ResolvedArm
from harness.config.schema.evaluation import Scheduler, negative_text
from harness.config.schema.model import EmojiModel, ModelConfig
from harness.config.weights.header import PICKLES
from harness.config.weights.layout import adapter_path
from harness.errors import ModelError

PARAMETERS, HARNESS = "parameters", "harness"
LIBRARIES = ("torch", "diffusers", "transformers", "compel")

SAMPLERS: dict[Scheduler, str] = {  # as A1111 calls them; DDPM, DEIS and DPM++ 2S it has not
    "DDIMScheduler": "DDIM",
    "DDPMScheduler": "DDPM",
    "DEISMultistepScheduler": "DEIS",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSinglestepScheduler": "DPM++ 2S",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


def described(
    arm: ResolvedArm,
    cell: Cell,
    image: Image.Image,
    *,
    latent_hash: str,
    sampler: Scheduler,
    adapters: Sequence[dict[str, Any]],
) -> dict[str, str]:
    """The text chunks of a cell's image. `adapters` are as `about_adapter` gives them."""
    about = {
        "cell": {
            "image_id": cell.image_id,
            "prompt_id": cell.prompt_id,
            "prompt": cell.prompt,
            "seed": cell.seed,
            "noise_seed": cell.noise_seed,
        },
        "arm": {
            "arm_id": arm.arm_id,
            "model": arm.model.model_dump(mode="json"),
            "negative": arm.negative,
            "guidance": arm.guidance,
            "guidance_interval": arm.guidance_interval,
            "guidance_rescale": arm.guidance_rescale,
            "guider": arm.guider.model_dump(mode="json"),
            "steps": arm.steps,
            "scheduler": arm.scheduler,
            "size": arm.size,
            "refiner_start": arm.refiner_start,
            "noise": arm.noise,
            "adapters": list(adapters),
            "merge": None if arm.merge is None else arm.merge.model_dump(mode="json"),
            "post": None if arm.post is None else arm.post.model_dump(mode="json"),
        },
        "latent_hash": latent_hash,
        "pixels_sha256": pixels_hash(image),
        "versions": versions(),
    }
    return {
        PARAMETERS: a1111_parameters(arm, cell, image.size, sampler=sampler, adapters=adapters),
        HARNESS: as_json(about),
    }


def as_json(about: dict[str, Any]) -> str:
    """The `harness` chunk: the same text for the same facts."""
    return json.dumps(about, sort_keys=True, ensure_ascii=False)


def save(image: Image.Image, file: Path, chunks: dict[str, str]) -> None:
    """Write a PNG with these text chunks. Nothing in it depends on the time."""
    text = PngInfo()
    for key, value in chunks.items():
        if value.isascii():
            text.add_text(key, value)
        else:
            text.add_itxt(key, value)
    image.save(file, format="PNG", pnginfo=text)


@cache
def versions() -> Mapping[str, str]:
    """The versions on which an image's last bits hang."""
    return {"harness": __version__, **{name: metadata.version(name) for name in LIBRARIES}}


def pixels_hash(image: Image.Image) -> str:
    """The sha256 of an image's RGB values, whatever its file looks like."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def about_adapter(adapter: ResolvedAdapter, path: Path) -> dict[str, Any]:
    """An adapter that acts: where it came from, a name for people, and the hash that A1111 shows of it."""
    name = f"{adapter.run_id}-{adapter.steps}" + ("-ema" if adapter.weights == "ema" else "")
    if adapter.run_id is None:
        name = path.stem if adapter.hub is None else f"{adapter.hub.id.partition('/')[2]}-{path.stem}"
    header, sha256 = weights_hash(path)
    return {
        "run_id": adapter.run_id,
        "steps": adapter.steps,
        "weights": adapter.weights,
        "file": None if adapter.file is None else adapter.file.as_posix(),
        "hub": adapter.hub and adapter.hub.model_dump(mode="json"),
        "digest": adapter.digest,
        "scale": adapter.scale,
        "branch": adapter.branch,
        "name": name,
        "kind": "embedding" if "clip_l" in header else "lora",
        "sha256": sha256,
    }


def weights_hash(path: Path) -> tuple[dict[str, Any], str]:
    """A safetensors file's header, and the sha256 of the rest: kohya's model hash, which A1111 shows.

    `path` may be the folder that an adapter was saved in. Raises ModelError where there is none.
    """
    path = adapter_path(path)
    with path.open("rb") as file:
        if path.suffix in PICKLES:  # without such a header: all of it
            return {}, hashlib.file_digest(file, "sha256").hexdigest()
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
        except (ValueError, RecursionError):
            raise ModelError(f"adapter {one_line(path)} is no whole .safetensors file") from None
        return header, hashlib.file_digest(file, "sha256").hexdigest()


def a1111_parameters(
    arm: ResolvedArm,
    cell: Cell,
    size: tuple[int, int],
    *,
    sampler: Scheduler,
    adapters: Sequence[dict[str, Any]],
) -> str:
    """The `parameters` chunk of A1111's web UI. `sampler` is what generated it, where the arm names none.

    The line of the negative prompt is there even where it is empty: ComfyUI imports nothing without it.
    """
    fields: dict[str, object] = {
        "Steps": arm.steps,
        "Sampler": SAMPLERS[arm.scheduler or sampler],
        "CFG scale": _number(arm.guidance),
        "Seed": cell.noise_seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": _model_name(arm.model),
    }
    if arm.guidance_interval is not None:
        fields["CFG interval"] = " to ".join(f"{share:g}" for share in arm.guidance_interval)
    if arm.guider.kind != "cfg":
        fields["Guider"] = arm.guider.kind
    if arm.guidance_rescale:
        fields["CFG Rescale"] = _number(arm.guidance_rescale)
    if arm.refiner_start is not None:
        fields["Refiner"] = _refiner_name(arm.model)
        fields["Refiner switch at"] = _number(arm.refiner_start)
    for kind, title in (("lora", "Lora"), ("embedding", "TI")):
        some = [a for a in adapters if a["kind"] == kind]
        if some:
            fields[f"{title} hashes"] = ", ".join(f"{a['name']}: {a['sha256'][:12]}" for a in some)
            fields[f"{title} scales"] = ", ".join(
                f"{a['name']}: {_number(a['scale'])} {a['branch']}" for a in some
            )
    if arm.merge is not None:
        fields["Lora merge"] = arm.merge.method
    if arm.post is not None:
        fields["Degraded"] = f"{arm.post.degrade} {arm.post.severity:g}"
    # A1111 knows LoRAs in the prompt, where they act on both branches, so only such are put there.
    alike = [a for a in adapters if a["branch"] == "both" and a["kind"] == "lora" and arm.merge is None]
    tags = "".join(f" <lora:{a['name']}:{_number(a['scale'])}>" for a in alike)
    settings = ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items())
    negative = negative_text(arm.negative, cell.prompt)
    return f"{cell.prompt}{tags}\nNegative prompt: {negative}\n{settings}"


def _model_name(config: ModelConfig) -> str:
    return "emoji" if isinstance(config, EmojiModel) else config.source


def _refiner_name(config: ModelConfig) -> str:
    return "emoji-refiner" if isinstance(config, EmojiModel) else str(config.refiner)


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _quoted(value: object) -> str:
    """A value with a comma, colon or line end is written as a JSON string, as the web UI does."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
