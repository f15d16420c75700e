"""Checkpoints in one file, as Stability AI's own code (`sgm`) names their tensors, by their headers.

    model.diffusion_model.input_blocks.…            the UNet
    conditioner.embedders.0.transformer.…           CLIP ViT-L; a refiner has ViT-bigG alone, as embedder 0
    conditioner.embedders.1.model.…                 ViT-bigG, as open_clip names it
    first_stage_model.…                             the VAE

A fine-tune that predicts v says so by an empty tensor `v_pred`, with `ztsnr` where it was trained to zero
terminal SNR (Lin et al. 2023), as ComfyUI reads them; or in the header, as kohya's scripts write it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.config.schema.model import CHECKPOINT, ModelConfig, SdxlModel
from harness.config.weights.header import Header, read_header
from harness.config.weights.names import SGM_LAYERS, Part, text_module, unet_module
from harness.config.weights.sdxl import PUBLISHED, Shapes, sdxl_shapes
from harness.errors import ModelError

Place = Literal["source", "refiner", "vae"]
WHAT: Mapping[Place, str] = {"source": "SDXL's base", "refiner": "SDXL's refiner", "vae": "a VAE"}
UNET, TEXT, TEXT_2 = (
    "model.diffusion_model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.",
)
REFINER_TEXT, VAE = "conditioner.embedders.0.model.", "first_stage_model."
BARE_VAE = re.compile(r"^(encoder|decoder)\.(conv_in|mid\.|down\.|up\.)")  # a VAE alone, without a prefix
INDEX = "model_index.json"
FIRST = f"{UNET}input_blocks.0.0.weight"
OTHERS = (  # what else is found in such files, the surest sign first
    (r"(^|[._])(lora|lokr|hada|oft)[._]", "an adapter: give it to an arm, or as adapter.file"),
    (r"(^|\.)control_model\.|input_hint_block|^controlnet", "a ControlNet"),
    (
        r"^edm_(mean|std|vpred)",
        "a model with EDM's noise, as Playground v2.5 and CosXL, which is not known here",
    ),
    (r"(^|\.)joint_blocks\.\d", "Stable Diffusion 3"),
    (r"(^|\.)(double_blocks|single_transformer_blocks|double_stream_modulation\w*)\.", "Flux"),
    (r"^cond_stage_model\.(transformer|text_model)\.", "Stable Diffusion 1"),
    (r"^cond_stage_model\.model\.", "Stable Diffusion 2"),
    (r"(absmax|quant_map|quant_state\S*|scaled_fp8|scale_weight|qweight|weight_scale)$", "quantized weights"),
    (
        r"^(down_blocks|mid_block|up_blocks|text_model|(en|de)coder\.(down|mid|up)_block)",
        "one part in diffusers' names: give its folder",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file says of itself. `prediction` is None where it says nothing."""

    header: Header
    prediction: Literal["epsilon", "v_prediction"] | None
    zero_terminal_snr: bool
    has_vae: bool


def is_file(source: str | None) -> bool:
    """True for a source that names a file; which need not be there."""
    return source is not None and source.endswith(CHECKPOINT)


def read_checkpoint(path: Path, place: Place = "source") -> Checkpoint:
    """The checkpoint that stands at `place` of a model. Its numbers are not read.

    Raises ModelError where it is none, or of another kind than the place takes.
    """
    header = read_header(path)
    found = _kind(header)
    if found != place:
        advice = f"; give it as model.{found}" if found in WHAT else ""
        raise ModelError(f"{path} is {WHAT.get(found, found)}, not {WHAT[place]}{advice}")  # type: ignore[call-overload]
    keys = header.shapes
    if place != "vae":
        missing = [name for name, start in _needed(place) if not any(key.startswith(start) for key in keys)]
        if missing:
            raise ModelError(f"{path} has no {' and no '.join(missing)}; give a whole checkpoint")
        taken, given = keys[FIRST][1], keys.get(f"{UNET}out.2.weight", (0,))[0]
        if taken != given:
            raise ModelError(
                f"{path} takes {taken} channels and gives {given}: it is for inpainting or editing images, "
                "not for text alone"
            )
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    by_header: dict[str, Literal["epsilon", "v_prediction"]] = {
        **{"v": "v_prediction", "v_prediction": "v_prediction"},
        **{"epsilon": "epsilon", "eps": "epsilon"},
    }
    return Checkpoint(
        header=header,
        prediction="v_prediction" if "v_pred" in keys else by_header.get(said),
        zero_terminal_snr="ztsnr" in keys,
        has_vae=any(key.startswith(VAE) for key in keys),
    )


def _needed(place: Place) -> tuple[tuple[str, str], ...]:
    if place == "refiner":
        return (("text encoder", REFINER_TEXT),)
    return (("first text encoder", TEXT), ("second text encoder", TEXT_2))


def _kind(header: Header) -> str:
    """A place of the model that the file is for, or in words what else it is."""
    keys = header.shapes
    for pattern, what in OTHERS:
        if any(re.search(pattern, key) for key in keys):
            return what
    if any(key.startswith(REFINER_TEXT) for key in keys):
        return "refiner"
    if FIRST in keys:
        return "source"
    if any(key.startswith(VAE) or BARE_VAE.match(key) for key in keys):
        return "vae"
    return f"no checkpoint that is known here (it has {min(keys)})"


def model_faults(model: ModelConfig) -> Iterator[str]:
    """What keeps a model whose parts are files from being loaded, by the field that names them."""
    if not isinstance(model, SdxlModel):
        return
    if model.config is not None and not (Path(model.config) / INDEX).is_file():
        yield f"config: {model.config} has no {INDEX}; give a folder in diffusers' layout"
    places: tuple[Place, ...] = ("source", "refiner", "vae")
    for place in places:
        source = getattr(model, place)
        if not is_file(source):
            continue
        try:
            found = read_checkpoint(Path(source).expanduser(), place)
        except ModelError as error:
            yield f"{place}: {error}"
            continue
        if place == "source" and not found.has_vae and model.vae is None:
            yield f"source: {source} has no VAE; give one as model.vae"
        if place == "source" and model.config is None and (why := _deviation(found)) is not None:
            yield f"source: {source} is not SDXL 1.0: {why}; give its configurations' folder as model.config"


def predicted(model: ModelConfig) -> str | None:
    """What the UNet is known to predict, without loading it."""
    if not isinstance(model, SdxlModel):
        return None
    if model.prediction_type is not None or not is_file(model.source):
        return model.prediction_type or ("epsilon" if model.source in PUBLISHED else None)
    return read_checkpoint(Path(model.source)).prediction or ("epsilon" if model.config is None else None)


def described(model: ModelConfig) -> str | None:
    """What the file of a model holds, in one line; None where its source is no file."""
    if not isinstance(model, SdxlModel) or not is_file(model.source):
        return None
    found = read_checkpoint(Path(model.source))
    said = {"v_prediction": "predicts v", "epsilon": "predicts ε", None: "does not say what it predicts"}
    parts = ["UNet", "two text encoders", *(["VAE"] if found.has_vae else [])]
    snr = ", to zero terminal SNR" if found.zero_terminal_snr else ""
    return f"{Path(model.source).name}: SDXL in one file ({', '.join(parts)}), {said[found.prediction]}{snr}"


def module_shapes(model: SdxlModel) -> Shapes:
    """The modules of a checkpoint that adapters act on; nothing where they are not numbered as SDXL's are."""
    if model.config is not None and not has_sdxl_blocks(Path(model.config)):
        return {}
    return _shapes(read_header(Path(model.source)))


def has_sdxl_blocks(folder: Path) -> bool | None:
    """Whether a model's UNet has as many layers in a block as SDXL's; None where the folder does not say."""
    config = folder / "unet" / "config.json"
    if not config.is_file():
        return None
    return bool(json.loads(config.read_text())["layers_per_block"] == SGM_LAYERS)


def _deviation(checkpoint: Checkpoint) -> str | None:
    """The first tensor that published SDXL has otherwise; None if there is none."""
    own = _shapes(checkpoint.header)
    for part, modules in sdxl_shapes().items():
        for module, shape in modules.items():
            found = own.get(part, {}).get(module)
            if found != shape:
                is_there = f"is {list(found)}" if found else "is not there"
                return f"its {part}.{module} {is_there}, SDXL's is {list(shape)}"
    return None


def _shapes(header: Header) -> Shapes:
    """The shapes of the modules that adapters act on, by diffusers' names, as far as they are SDXL's."""
    found: dict[Part, dict[str, tuple[int, ...]]] = {"unet": {}, "text_encoder": {}, "text_encoder_2": {}}
    for key, shape in header.shapes.items():
        name = key.removesuffix(".weight")
        if key.startswith(UNET):
            module = unet_module(name.removeprefix(UNET))
            if module is not None and key.endswith(".weight"):
                found["unet"][module] = shape
        elif key.startswith(TEXT):
            module = text_module(name.removeprefix(TEXT), "text_encoder")
            if module is not None and key.endswith(".weight"):
                found["text_encoder"][module] = shape
        elif key.startswith(TEXT_2):
            found["text_encoder_2"] |= _open_clip(key.removeprefix(f"{TEXT_2}model."), shape)
    return found


OPEN_CLIP = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def _open_clip(key: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    if key in ("text_projection", "text_projection.weight"):
        return {"text_projection": shape}
    block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)(?:\.weight|_weight)", key)
    if block is None:
        return {}
    layer = f"encoder.layers.{block[1]}"
    if block[2] == "attn.in_proj" and len(shape) == 2:  # queries, keys and values in one
        return {f"{layer}.self_attn.{name}_proj": (shape[0] // 3, shape[1]) for name in "qkv"}
    return {f"{layer}.{OPEN_CLIP[block[2]]}": shape} if block[2] in OPEN_CLIP else {}
