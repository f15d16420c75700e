"""Adapters as files, and what is read of them.

A LoRA is written in diffusers' layout, with its configuration in the header, so that stock
`load_lora_weights` makes the same function of it. A textual inversion is written as diffusers, A1111 and
ComfyUI keep SDXL's embeddings: `clip_l` and `clip_g`; where they started stands beside them. LoHa, LoKr and
OFT are written as PEFT's folder. Read are these, and every layout of `config/weights/layout.py`. LoHa and
LoKr (Yeh et al. 2024) are read as exact low-rank products, which act row by row as LoRA does:

    LoHa:  ΔW = (A₁ B₁) ∘ (A₂ B₂), of rank r₁ r₂: columns of `up` are A₁ₛ ∘ A₂ₜ, rows of `down` B₁ₛ ∘ B₂ₜ.
    LoKr:  ΔW = W₁ ⊗ W₂ with W₁ [a, c] and W₂ = U V of rank r: of rank c r or a r, whichever is less.

Shape legend: I in, O out, R rank of the product, k kernel.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from harness.config.loading.files import one_line
from harness.config.schema.adapter import (
    AdapterConfig,
    LowRankAdapter,
    OftAdapter,
    ProductAdapter,
    TextualInversion,
)
from harness.config.weights.header import PICKLES
from harness.config.weights.layout import (
    CLIP_KEYS,
    EMBEDDING_FILE,
    LORA_FILE,
    METADATA_KEY,
    PEFT_CONFIG,
    PEFT_FILE,
    Layer,
    Layout,
    adapter_path,
    oft_block_size,
    read_layout,
)
from harness.config.weights.names import PARTS, TEXT_BODY
from harness.diffusion.adapters.adapter import Adapter, AdapterLayer, Embedding, LowRankLayer, RotatedLayer
from harness.diffusion.adapters.init import LayerAdapter, configuration
from harness.errors import ModelError

MAGNITUDE = ".lora_magnitude_vector"
PEFT_NAMES = {"loha": ".hada_", "lokr": ".lokr_", "oft": ".oft_"}  # what follows a module's name
RECORDED = ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules")  # of PEFT's configuration


def read_adapter(path: Path, *, device: torch.device, dtype: torch.dtype) -> Adapter:
    """Read an adapter: a folder as `save_adapter` or PEFT writes it, or a file in any of the layouts.

    Raises ModelError where the file is missing, damaged, or of another kind.
    """
    path = adapter_path(path)
    layout = read_layout(path)
    tensors = _tensors(path)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise ModelError(
                f"adapter {path} has NaN or infinity in {one_line(key, 100)}: its training failed"
            )
    if layout.kind == "embedding":
        return Adapter(embedding=_embedding(layout, {k: t.to(device, dtype) for k, t in tensors.items()}))
    unet, first, second = (
        {
            module: _layer(layer, {role: tensors[key] for role, key in layer.keys.items()}, device, dtype)
            for module, layer in layout.layers[part].items()
        }
        for part in PARTS
    )
    return Adapter(unet=unet, text_encoder=first, text_encoder_2=second)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The numbers as they are stored. A pickle is read as tensors and plain containers alone."""
    try:
        if path.suffix in PICKLES:
            loaded: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
            return loaded
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError, UnpicklingError) as error:
        raise ModelError(
            f"adapter {path} cannot be read ({error}); give a whole .safetensors file"
        ) from error


def _embedding(layout: Layout, tensors: Mapping[str, torch.Tensor]) -> Embedding:
    assert layout.word is not None
    starts = tuple(f"{key}_start" for key in CLIP_KEYS)
    start = (tensors[starts[0]], tensors[starts[1]]) if all(key in tensors for key in starts) else None
    return Embedding(word=layout.word, learnt_ND=(tensors["clip_l"], tensors["clip_g"]), start_ND=start)


def _layer(
    layer: Layer, tensors: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> AdapterLayer:
    rank: int | None
    if "oft_R" in tensors:
        turn_kbb = _turned_inputs(tensors["oft_R"].float(), layer.neumann_terms)
        return RotatedLayer(turn_kbb=turn_kbb.to(device, dtype), side="inputs")
    if "oft_blocks" in tensors:
        turn_kbb = _turned_outputs(tensors["oft_blocks"].float(), tensors.get("alpha"))
        return RotatedLayer(turn_kbb=turn_kbb.to(device, dtype), side="outputs")
    if "hada_w1_a" in tensors:
        down, up, rank = _at_most_full(*_hadamard(tensors))
    elif "lokr_w1" in tensors or "lokr_w1_a" in tensors:
        down, up, rank = _at_most_full(*_kronecker(tensors))
    else:
        down, up = tensors["down"], tensors["up"]
        rank = down.shape[0]
        if "mid" in tensors:  # Tucker: a core of the kernel's size between A and B
            down = torch.einsum("srhw,ri->sihw", tensors["mid"].float(), down.flatten(1).float())
    if down.ndim == 4 and up.ndim == 2:
        up = up[:, :, None, None]
    return LowRankLayer(
        down=down.to(device, dtype),
        up=up.to(device, dtype),
        scale=_scale(layer, tensors, rank),
        magnitude_O=tensors["magnitude"].flatten().to(device, dtype) if "magnitude" in tensors else None,
    )


def _at_most_full(
    down: torch.Tensor, up: torch.Tensor, rank: int | None
) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """The product as one matrix beside the identity, where it has more rank than the layer."""
    if len(down) <= min(len(up), down[0].numel()):
        return down, up, rank
    whole = (up.flatten(1).float() @ down.flatten(1).float()).view(-1, *down.shape[1:])
    return whole, torch.eye(len(up)), rank


def _scale(layer: Layer, tensors: Mapping[str, torch.Tensor], rank: int | None) -> float:
    """Without a recorded alpha, alpha is the rank. A LoKr of two whole factors shows no rank: scale 1."""
    rank = layer.rank if rank is None else rank
    if rank is None:
        return 1.0
    if "alpha" in tensors:
        return tensors["alpha"].item() / rank
    if layer.alpha is None:
        return 1.0
    return layer.alpha / (math.sqrt(rank) if layer.is_rslora else rank)


def _turned_inputs(above_kn: torch.Tensor, terms: int | None) -> torch.Tensor:
    """R − I of PEFT's OFT: R = (I − Q)(I + Q)⁻¹, or of −Q the series I + 2 Q + 2 Q² + … up to half a term.

    The series of 3 terms is PEFT's of 4.
    """
    size = oft_block_size(above_kn.shape[1])
    assert size is not None, "seen to when the layout was read"
    q_kbb = torch.zeros(len(above_kn), size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    q_kbb[:, rows, columns] = above_kn
    q_kbb = q_kbb - q_kbb.transpose(1, 2)
    eye_bb = torch.eye(size)
    if terms is None:
        return torch.linalg.solve(eye_bb + q_kbb, eye_bb - q_kbb, left=False) - eye_bb
    terms = 4 if terms == 3 else terms
    turn_kbb, power_kbb = torch.zeros_like(q_kbb), q_kbb
    for place in range(1, terms):
        is_half = place == terms - 1 and terms > 2
        turn_kbb = turn_kbb + (1 if is_half else 2) * power_kbb
        power_kbb = power_kbb @ q_kbb
    return turn_kbb


def _turned_outputs(blocks_kbb: torch.Tensor, alpha: torch.Tensor | None) -> torch.Tensor:
    """R − I of kohya's and LyCORIS's OFT: R = (I + Q)(I − Q)⁻¹, the norm of all Q at most alpha · outputs."""
    q_kbb = blocks_kbb - blocks_kbb.transpose(1, 2)
    most = 0.0 if alpha is None else alpha.item() * blocks_kbb.shape[0] * blocks_kbb.shape[1]
    if most > 0:
        q_kbb = q_kbb * min(1.0, most / (torch.linalg.vector_norm(q_kbb).item() + 1e-8))
    eye_bb = torch.eye(q_kbb.shape[-1])
    return (eye_bb + q_kbb) @ torch.linalg.inv(eye_bb - q_kbb) - eye_bb


def _hadamard(parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A LoHa's `down` [R, I…] and `up` [O, R], and the rank that its alpha is divided by."""
    a1, b1, a2, b2 = (parts[f"hada_w{n}_{side}"].flatten(1).float() for n in "12" for side in "ab")
    up_OR = torch.einsum("os,ot->ost", a1, a2).flatten(1)
    down_RI = torch.einsum("si,ti->sti", b1, b2).flatten(0, 1)
    return down_RI, up_OR, b1.shape[0]


def _kronecker(parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """A LoKr's `down` [R, I] or [R, I, k, k] and `up` [O, R], its rank; None if both factors are whole."""
    rank = next((parts[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in parts), None)
    w1 = _whole_factor(parts, "1").flatten(1)
    u, v = _split(parts)
    (a, c), (b, r) = w1.shape, u.shape
    if c <= a:
        down = torch.einsum("mj,sq...->msjq...", torch.eye(c).to(v), v)
        up = torch.einsum("ij,ps->ipjs", w1, u)
    else:
        down = torch.einsum("ij,sq...->isjq...", w1, v)
        up = torch.einsum("im,ps->ipms", torch.eye(a).to(u), u)
    kernel = v.shape[2:]
    return down.reshape(min(a, c) * r, c * v.shape[1], *kernel), up.reshape(a * b, min(a, c) * r), rank


def _whole_factor(parts: Mapping[str, torch.Tensor], n: str) -> torch.Tensor:
    if f"lokr_w{n}" in parts:
        return parts[f"lokr_w{n}"].float()
    return parts[f"lokr_w{n}_a"].float() @ parts[f"lokr_w{n}_b"].flatten(1).float()


def _split(parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """W₂ as U [b, r] and V [r, d] or [r, d, k, k], of the least rank that is seen at once."""
    if "lokr_w2" not in parts:
        return parts["lokr_w2_a"].float(), parts["lokr_w2_b"].float()
    w2 = parts["lokr_w2"].float()
    if w2.ndim == 2 and w2.shape[1] < w2.shape[0]:
        return w2, torch.eye(w2.shape[1]).to(w2)
    return torch.eye(w2.shape[0]).to(w2), w2


def save_adapter(
    state: dict[str, torch.Tensor], adapter: AdapterConfig, folder: Path, metadata: dict[str, str]
) -> None:
    """Write what `Trainable.state_dict` gave into `folder`; `metadata` goes into its header."""
    match adapter:
        case LowRankAdapter():
            name, own = LORA_FILE, {METADATA_KEY: json.dumps(_config(state, adapter), sort_keys=True)}
        case ProductAdapter() | OftAdapter():
            folder.mkdir(parents=True, exist_ok=True)
            _save_as_peft(state, adapter, folder, metadata)
            return
        case TextualInversion():
            name, own = EMBEDDING_FILE, {"word": adapter.word, "vectors": str(adapter.vectors)}
    own["format"] = "pt"
    assert not own.keys() & metadata.keys(), f"these names are the file's own: {', '.join(own)}"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_key_in_file(key): tensor.contiguous() for key, tensor in sorted(state.items())}
    (folder / name).write_bytes(with_sorted_metadata(save(tensors, {**metadata, **own})))


def _save_as_peft(
    state: dict[str, torch.Tensor], adapter: LayerAdapter, folder: Path, metadata: dict[str, str]
) -> None:
    """A folder that `PeftModel.from_pretrained(unet, folder)` reads."""
    modules = sorted({key.removeprefix("unet.").rpartition(PEFT_NAMES[adapter.kind])[0] for key in state})
    config = configuration(adapter, modules).to_dict() | {"target_modules": modules}  # PEFT's is a set
    tensors = {f"base_model.model.{key.removeprefix('unet.')}": t.contiguous() for key, t in state.items()}
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    (folder / PEFT_FILE).write_bytes(with_sorted_metadata(save(tensors, {**metadata, "format": "pt"})))


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
