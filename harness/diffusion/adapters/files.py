"""Adapters as files, and what is read of them.

A low-rank adapter is written in diffusers' layout, with its configuration in the header, so that stock
`load_lora_weights` makes the same function of it. A textual inversion is written as diffusers, A1111 and
ComfyUI keep SDXL's embeddings: `clip_l` and `clip_g`; where they started stands beside them. Read are these,
and LoRA in kohya's layout.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from harness.config.schema.adapter import AdapterConfig, LowRankAdapter, TextualInversion
from harness.diffusion.adapters.adapter import PARTS, Adapter, Embedding, LowRankLayer
from harness.diffusion.adapters.init import configuration
from harness.errors import ModelError

LORA_FILE = "pytorch_lora_weights.safetensors"
EMBEDDING_FILE = "learned_embeds.safetensors"
METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps rank and alpha, as JSON with prefixed names
TEXT_BODY = "text_model."  # always in the file's names, in the encoders' own only where transformers has it
CLIP_KEYS = ("clip_l", "clip_g")
KOHYA = ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te_")
DOWN, UP, MAGNITUDE, ALPHA = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".alpha"
RECORDED = ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules")  # of PEFT's configuration
UNSUPPORTED = ("rank_pattern", "alpha_pattern", "lora_bias", "use_qalora")


def adapter_path(path: Path) -> Path:
    """The file itself, where `path` is the folder it was saved in. Raises ModelError where there is none."""
    if not path.is_dir():
        return path
    for name in (LORA_FILE, EMBEDDING_FILE):
        if (path / name).is_file():
            return path / name
    raise ModelError(f"adapter {path} cannot be read: it has neither {LORA_FILE} nor {EMBEDDING_FILE}")


def read_adapter(path: Path, *, device: torch.device, dtype: torch.dtype) -> Adapter:
    """Read an adapter: a folder as `save_adapter` writes it, or a file in one of the layouts above.

    Raises ModelError where the file is missing, damaged or of another kind.
    """
    path = adapter_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key).to(device, dtype) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"adapter {path} cannot be read ({error}); give a .safetensors file, or run again what made it"
        ) from error
    if not tensors:
        raise ModelError(f"adapter {path} holds no tensors")
    if CLIP_KEYS[0] in tensors or CLIP_KEYS[1] in tensors:
        return Adapter(embedding=_embedding(path, tensors, header))
    if next(iter(tensors)).startswith(KOHYA):
        from harness.diffusion.adapters.kohya import from_kohya

        tensors, header = from_kohya(tensors), {}
    return _low_rank(path, tensors, header)


def _embedding(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> Embedding:
    starts = tuple(f"{key}_start" for key in CLIP_KEYS)
    for key, tensor in tensors.items():
        if key not in (*CLIP_KEYS, *starts) or tensor.ndim != 2:
            raise ModelError(
                f"embedding {path} has {key}; allowed: {', '.join((*CLIP_KEYS, *starts))}, [n, D]"
            )
    absent = [key for key in CLIP_KEYS if key not in tensors]
    if absent or len({tensor.shape[0] for tensor in tensors.values()}) != 1:
        raise ModelError(f"embedding {path} must have as many vectors in clip_l as in clip_g, one or more")
    start = (tensors[starts[0]], tensors[starts[1]]) if all(key in tensors for key in starts) else None
    # Files of other tools carry no word: as in A1111 and ComfyUI, the file's name is the word.
    word = header["word"] if "word" in header else path.stem.lower()
    return Embedding(word=word, learnt_ND=(tensors["clip_l"], tensors["clip_g"]), start_ND=start)


def _low_rank(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> Adapter:
    config = json.loads(header[METADATA_KEY]) if METADATA_KEY in header else {}
    kinds: dict[str, dict[str, dict[str, torch.Tensor]]] = {part: {} for part in PARTS}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        name = name.replace(f"{MAGNITUDE}.weight", MAGNITUDE)
        kind = next((kind for kind in (DOWN, UP, MAGNITUDE, ALPHA) if name.endswith(kind)), None)
        if part not in PARTS or kind is None:
            raise ModelError(
                f"adapter {path} has {key}; allowed: <part>.<module> with {DOWN[1:]}, {UP[1:]} or "
                f"{MAGNITUDE[1:]}, where part is {', '.join(PARTS)}"
            )
        module = name.removesuffix(kind)
        if part != "unet":
            module = module.removeprefix(TEXT_BODY)
        kinds[part].setdefault(module, {})[kind] = tensor
    unet, first, second = (_part(path, part, kinds[part], config) for part in PARTS)
    return Adapter(unet=unet, text_encoder=first, text_encoder_2=second)


def _part(
    path: Path, part: str, modules: Mapping[str, Mapping[str, torch.Tensor]], config: Mapping[str, Any]
) -> dict[str, LowRankLayer]:
    for name in UNSUPPORTED:
        if config.get(f"{part}.{name}"):
            raise ModelError(
                f"adapter {path} uses {name}, which cannot act row by row; allowed: LoRA, rsLoRA, DoRA"
            )
    layers = {}
    for module, found in sorted(modules.items()):
        if DOWN not in found or UP not in found or found[DOWN].shape[0] != found[UP].shape[1]:
            raise ModelError(
                f"adapter {path} must have lora_A and lora_B of one rank for every module it names; "
                f"{part}.{module} has not"
            )
        magnitude = found[MAGNITUDE].flatten() if MAGNITUDE in found else None
        rank = found[DOWN].shape[0]
        layers[module] = LowRankLayer(
            down=found[DOWN], up=found[UP], scale=_scale(part, rank, found, config), magnitude_O=magnitude
        )
    return layers


def _scale(part: str, rank: int, found: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> float:
    """Without a recorded alpha, alpha is the rank."""
    if ALPHA in found:
        return found[ALPHA].item() / rank
    if f"{part}.lora_alpha" not in config:
        return 1.0
    is_rslora = config.get(f"{part}.use_rslora")  # what is not there is off, as in PEFT
    return config[f"{part}.lora_alpha"] / (math.sqrt(rank) if is_rslora else rank)


def save_adapter(
    state: dict[str, torch.Tensor], adapter: AdapterConfig, folder: Path, metadata: dict[str, str]
) -> None:
    """Write what `Trainable.state_dict` gave into `folder`; `metadata` goes into its header."""
    match adapter:
        case LowRankAdapter():
            name, own = LORA_FILE, {METADATA_KEY: json.dumps(_config(state, adapter), sort_keys=True)}
        case TextualInversion():
            name, own = EMBEDDING_FILE, {"word": adapter.word, "vectors": str(adapter.vectors)}
    own["format"] = "pt"
    assert not own.keys() & metadata.keys(), f"these names are the file's own: {', '.join(own)}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_key_in_file(key): tensor.contiguous() for key, tensor in sorted(state.items())}
    (folder / name).write_bytes(with_sorted_metadata(save(tensors, {**metadata, **own})))


def _key_in_file(key: str) -> str:
    """Stock loaders find the UNet's magnitudes under their bare name, the text encoders' with `.weight`."""
    return f"{key}.weight" if key.startswith("text_encoder") and key.endswith(MAGNITUDE) else key


def _config(state: dict[str, torch.Tensor], adapter: LowRankAdapter) -> dict[str, Any]:
    """PEFT's configuration of each part, as diffusers reads it."""
    prefixed: dict[str, Any] = {}
    for part in PARTS:
        modules = sorted({key.split(".lora_")[0] for key in state if key.startswith(f"{part}.")})
        if modules:
            # Without the body's name, which transformers' encoders have in some versions alone.
            names = [module.removeprefix(f"{part}.").removeprefix(TEXT_BODY) for module in modules]
            config = configuration(adapter, names).to_dict() | {"target_modules": names}  # PEFT's is a set
            prefixed |= {f"{part}.{name}": config[name] for name in RECORDED if config[name]}
    return prefixed


def with_sorted_metadata(data: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library's own changes from process to process."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    assert len(text) == length, "only the order may change"
    return data[:8] + text + data[8 + length :]
