"""Damaged adapters: LoRAs in every layout, LoHa, LoKr, DoRA, embeddings and pickles.

One is wrongly taken when a tensor of it neither acts nor is told as left out; when `check` takes it, and
then it cannot be read or does not fit the model's layers; or when what acts is not finite.
"""

import io
import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from benchmarks.fuzz.cases import Cases, damaged, mutated
from benchmarks.fuzz.sweeps import PROMPTS, SHIPPED, SWEEPS
from harness.config.loading.check_named_files import module_shapes
from harness.config.loading.files import read_yaml
from harness.config.loading.load import load_plan
from harness.config.schema.model import EmojiModel
from harness.config.weights.layout import METADATA_KEY, read_layout
from harness.config.weights.names import PARTS
from harness.diffusion.adapters.adapter import RotatedLayer
from harness.diffusion.adapters.files import read_adapter

State = dict[str, torch.Tensor]
RANK = 2
WORD = "wrong"
ODD_NAMES = (
    "x" * 3000,
    "lora_A",
    "a\nb",
    "\u202e",
    "unet.lora_A.weight",
    "unet..lora_A.weight",
    "__metadata__",
)


def damaged_adapters(folder: Path, *, seed: int, count: int) -> Cases:
    """Adapters of a few layers of the embedded model, as an arm of a sweep names them."""
    layers = some_layers()
    sweep = {
        **read_yaml(SWEEPS / f"{SHIPPED[0]}.yaml"),
        "axes": {"adapter.rank": [2]},
        "recipe": {"kind": "plain", "count": 1, "prompts": ["a cat"]},
        "prompts": PROMPTS,
    }
    for number in range(count):
        dice = random.Random(f"adapter {seed} {number}")
        kind = dice.choice(list(KINDS))
        state, metadata = KINDS[kind](layers), _metadata(kind, layers)
        file = folder / f"a.{'bin' if dice.random() < 0.15 else 'safetensors'}"
        done, content = _changed(state, metadata, file.suffix == ".bin", dice)
        file.write_bytes(content)
        arm = {"name": "given", "negative": WORD, "adapters": [{"file": str(file)}]}
        path = folder / "sweep.yaml"
        path.write_text(
            yaml.safe_dump(
                {**sweep, "arms": [{"name": "placebo", "negative": WORD}, *sweep["arms"][3:], arm]}
            )
        )

        def read(path: Path = path, file: Path = file) -> None:
            load_plan(path)
            _check_taken(file)

        yield f"{kind}{file.suffix}: {done}", read


def some_layers() -> dict[str, tuple[int, ...]]:
    """Layers of the embedded model, of each part and kind, by `<part>.<module>`."""
    shapes = module_shapes(EmojiModel())
    found = {}
    for part, words in zip(
        PARTS, (("attn1.to_q", "attn2.to_k", "conv1"), ("q_proj",), ("q_proj",)), strict=True
    ):
        for word in words:
            module = next(name for name in sorted(shapes[part]) if name.endswith(word))
            found[f"{part}.{module}"] = shapes[part][module]
    return found


def _numbers(*shape: int) -> torch.Tensor:
    return torch.linspace(-0.1, 0.1, torch.Size(shape).numel()).reshape(shape)


def _lora(layers: dict[str, tuple[int, ...]], down: str, up: str) -> State:
    state = {}
    for name, (outputs, inputs, *kernel) in layers.items():
        state[f"{name}{down}"] = _numbers(RANK, inputs, *kernel)
        state[f"{name}{up}"] = _numbers(outputs, RANK, *[1] * len(kernel))
    return state


def peft(layers: dict[str, tuple[int, ...]]) -> State:
    """A LoRA on these layers, as PEFT and diffusers name its tensors."""
    return _lora(layers, ".lora_A.weight", ".lora_B.weight")


def _dora(layers: dict[str, tuple[int, ...]]) -> State:
    magnitudes = {f"{name}.lora_magnitude_vector": _numbers(shape[0]) + 1 for name, shape in layers.items()}
    return {**peft(layers), **magnitudes}


def _flat(name: str) -> str:
    part, _, module = name.partition(".")
    starts = ("lora_unet_", "lora_te1_text_model.", "lora_te2_text_model.")
    start = next(start for own, start in zip(PARTS, starts, strict=True) if own == part)
    return (start + module.removeprefix("text_model.")).replace(".", "_")


def _kohya(layers: dict[str, tuple[int, ...]]) -> State:
    flat = {_flat(name): shape for name, shape in layers.items()}
    alphas = {f"{name}.alpha": torch.tensor(1.0) for name in flat}
    return {**_lora(flat, ".lora_down.weight", ".lora_up.weight"), **alphas}


def _loha(layers: dict[str, tuple[int, ...]]) -> State:
    state = {}
    for name, (outputs, inputs, *kernel) in layers.items():
        width = inputs * (kernel[0] * kernel[1] if kernel else 1)
        for n in "12":
            state[f"{_flat(name)}.hada_w{n}_a"] = _numbers(outputs, RANK)
            state[f"{_flat(name)}.hada_w{n}_b"] = _numbers(RANK, width)
        state[f"{_flat(name)}.alpha"] = torch.tensor(1.0)
    return state


def _lokr(layers: dict[str, tuple[int, ...]]) -> State:
    state = {}
    for name, (outputs, inputs, *kernel) in layers.items():
        state[f"{_flat(name)}.lokr_w1"] = _numbers(2, 2)
        state[f"{_flat(name)}.lokr_w2"] = _numbers(outputs // 2, inputs // 2, *kernel)
        state[f"{_flat(name)}.alpha"] = torch.tensor(1.0)
    return state


def _embedding(layers: dict[str, tuple[int, ...]]) -> State:
    shapes = module_shapes(EmojiModel())
    widths = [shapes[part]["embeddings.token_embedding"][1] for part in PARTS[1:]]
    return {key: _numbers(RANK, width) for key, width in zip(("clip_l", "clip_g"), widths, strict=True)}


KINDS: dict[str, Callable[[dict[str, tuple[int, ...]]], State]] = {
    "peft": peft,
    "old diffusers": lambda layers: _lora(layers, ".lora.down.weight", ".lora.up.weight"),
    "dora": _dora,
    "kohya": _kohya,
    "loha": _loha,
    "lokr": _lokr,
    "embedding": _embedding,
}


def _metadata(kind: str, layers: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    if kind == "embedding":
        return {"word": WORD}
    config = {
        f"{part}.{key}": value
        for part in PARTS
        for key, value in (("r", RANK), ("lora_alpha", 4), ("use_rslora", False))
    }
    return {METADATA_KEY: config} if kind in ("peft", "dora") else {}


def _changed(
    state: State, metadata: dict[str, Any], is_pickle: bool, dice: random.Random
) -> tuple[str, bytes]:
    """The file of an adapter in which something is another: a tensor, a name, the metadata or bytes."""
    key = dice.choice(sorted(state))
    tensor = state[key]
    kind = dice.choice(
        ("name", "drop", "shape", "number", "dtype", "more", "metadata", "header", "bytes", "bytes")
    )
    done = f"{kind} of {key}"
    match kind:
        case "name":
            other = dice.choice(
                (dice.choice(ODD_NAMES), _misspelt(key, dice), key.replace("unet", "text_encoder", 1))
            )
            state = {(other if name == key else name): value for name, value in state.items()}
            done = f"{key} named {other!r:.80}"
        case "drop":
            del state[key]
        case "shape":
            shapes = (
                (),
                (0,),
                (1,),
                (*tensor.shape, 1),
                tensor.shape[::-1],
                (1, *tensor.shape),
                (0, 3),
                (7, 7),
            )
            state[key] = _numbers(*(shape := dice.choice(shapes)))
            done = f"{key} of shape {shape}"
        case "number":
            value = dice.choice((float("nan"), float("inf"), -float("inf")))
            state[key] = tensor.clone()
            state[key].view(-1)[0] = value
            done = f"{key} with {value}"
        case "dtype":
            dtype = dice.choice(
                (
                    torch.float16,
                    torch.bfloat16,
                    torch.float64,
                    torch.int8,
                    torch.int64,
                    torch.bool,
                    torch.float8_e4m3fn,
                )
            )
            state[key] = tensor.to(dtype)
            done = f"{key} as {dtype}"
        case "more":
            names = (
                "lora_unet_x.alpha",
                f"{key}.alpha",
                "bundle_emb.x.clip_l",
                "emb_params",
                "x",
                key.replace("0", "1"),
            )
            state[name := dice.choice(names)] = _numbers(*dice.choice(((), (2, 2), tuple(tensor.shape))))
            done = f"{name} besides"
        case "metadata" if metadata and not is_pickle:
            done, metadata = mutated(metadata, dice)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    content = (
        _pickled(state, dice) if is_pickle else save({k: t.contiguous() for k, t in state.items()}, texts)
    )
    if kind == "header" and not is_pickle:
        done, content = _with_header(content, dice)
    if kind == "bytes":
        end = dice.choice((len(content), 200))  # the header has most of the meaning
        done, start = damaged(content[:end], dice)
        content = start + content[end:]
    return done, content


def _misspelt(key: str, dice: random.Random) -> str:
    place = dice.randrange(len(key))
    return key[:place] + dice.choice(("", "x", ".", "_", "9")) + key[place + 1 :]


def _with_header(content: bytes, dice: random.Random) -> tuple[str, bytes]:
    length = int.from_bytes(content[:8], "little")
    done, header = mutated(json.loads(content[8 : 8 + length]), dice)
    text = json.dumps(header).encode()
    size = dice.choice((len(text), len(text), 2**63, 10**9))
    return f"header: {done}", struct.pack("<Q", size) + text + content[8 + length :]


def _pickled(state: State, dice: random.Random) -> bytes:
    odd: tuple[Any, ...] = (
        state,
        state,
        {"state_dict": state},
        list(state),
        {1: _numbers(2)},
        {"x": _Code()},
        _numbers(2),
    )
    file = io.BytesIO()
    torch.save(dice.choice(odd), file)
    return file.getvalue()


class _Code:
    """Runs when a pickle of it is loaded as any pickle is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise AssertionError('code of a pickle was run')",)


def _check_taken(file: Path) -> None:
    layout = read_layout(file)
    acting = [
        key for layers in layout.layers.values() for layer in layers.values() for key in layer.keys.values()
    ]
    told = [key for keys in layout.left_out.values() for key in keys]
    if layout.kind == "low_rank":
        assert sorted([*acting, *told]) == sorted(layout.header.shapes), (
            "a tensor neither acts nor is left out"
        )
    adapter = read_adapter(file, device=torch.device("cpu"), dtype=torch.float32)
    if adapter.embedding is not None:
        assert all(bool(t.isfinite().all()) for t in adapter.embedding.learnt_ND), "not finite"
        return
    shapes = module_shapes(EmojiModel())
    for part, layers in zip(PARTS, (adapter.unet, adapter.text_encoder, adapter.text_encoder_2), strict=True):
        for module, layer in layers.items():
            if isinstance(layer, RotatedLayer):
                assert bool(layer.turn_kbb.isfinite().all()), f"{module} is not finite"
                continue
            size = layer.up.flatten(1).shape[0] * layer.down.flatten(1).shape[1]
            assert size == torch.Size(shapes[part][module]).numel(), f"{module} does not fit"
            finite = math.isfinite(layer.scale) and bool(
                layer.up.isfinite().all() & layer.down.isfinite().all()
            )
            assert finite, f"{module} is not finite"
