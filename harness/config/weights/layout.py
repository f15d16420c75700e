"""What an adapter's tensors are, whatever tool named them: `<part>`, `<module>` and what each does there.

    unet.….to_q.lora_A.weight                     PEFT, diffusers and its scripts since 2024
    unet.….to_q.lora.down.weight                  diffusers' scripts, late 2023
    unet.….attn1.processor.to_q_lora.down.weight  diffusers' scripts, 2023
    base_model.model.….to_q.lora_A.weight         PEFT's folder, with adapter_config.json
    lora_unet_…_to_q.lora_down.weight             kohya, A1111, LyCORIS; blocks by sgm's or diffusers' names
    diffusion_model.….to_q.lora_A.weight          ComfyUI, blocks by sgm's names
    unet.input_blocks.….lora_down.weight, clip_l. OMI, as OneTrainer writes it

Every key is looked at. What could not act is left out by name, with the reason, where the rest of the file is
what it is without it; else the file is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.config.weights.header import Header, read_header
from harness.config.weights.names import PARTS, SGM, TEXT_BODY, Part, text_module, unet_module
from harness.errors import ModelError

METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps rank and alpha, as JSON with prefixed names
LORA_FILE = "pytorch_lora_weights.safetensors"
EMBEDDING_FILE = "learned_embeds.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_TYPES = ("LORA", "LOHA", "LOKR", "OFT")
PEFT_TERMS = 5  # of its series, where its settings do not say
CLIP_KEYS = ("clip_l", "clip_g")
MOST_ALPHA = 1_000_000  # also of a rank

Role = str  # down, up, mid, magnitude, alpha; hada_w1_a …; lokr_w1 …; oft_R, oft_blocks
ROLES: tuple[tuple[Role, re.Pattern[str]], ...] = tuple(
    (role, re.compile(rf"(?:{pattern})$"))
    for role, pattern in (
        (
            "down",
            r"\.lora_A(?:\.\w+)?\.weight|\.lora_down\.weight|(?:\.|_)lora(?:_linear_layer)?\.down\.weight",
        ),
        ("up", r"\.lora_B(?:\.\w+)?\.weight|\.lora_up\.weight|(?:\.|_)lora(?:_linear_layer)?\.up\.weight"),
        ("mid", r"\.lora_mid\.weight"),
        ("magnitude", r"\.lora_magnitude_vector(?:\.\w+)?|\.dora_scale"),
        ("alpha", r"\.alpha"),
    )
)
FAMILIES = re.compile(
    r"\.((?:hada|lokr)_(?:w[12](?:_[ab])?|t[12])|oft_R(?=\.weight)|oft_blocks)(?:\.weight)?$"
)
PREFIXES: tuple[tuple[str, Part], ...] = (  # the longest first
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("clip_l.", "text_encoder"),
    ("clip_g.", "text_encoder_2"),
    ("unet.", "unet"),
    ("lora_unet_", "unet"),
    ("oft_unet_", "unet"),
    ("lycoris_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),  # some tools' name of the first, as if there were no second
)
FLAT = tuple(prefix for prefix, _ in PREFIXES if prefix.endswith("_"))
LEFT_OUT = (("bundle_emb.", "embeddings bundled with the LoRA: give them as a file of their own"),)
REFUSED = (  # what cannot be a part of a LoRA here, and why
    (r"\.lora_B(\.\w+)?\.bias$", "biases of a LoRA (lora_bias), which cannot act row by row"),
    (r"\.(diff|diff_b|w_norm|b_norm|set_weight|modules_to_save\..+)$", "whole weights, not a LoRA"),
    (r"\.(a1|a2|b1|b2)\.weight$|\.on_input$", "of GLoRA or (IA)³, which cannot act row by row"),
    (r"oft_diag|oft_s$|\.rescale$", "of an OFT that also scales, or an older one, which cannot be read"),
    (r"^lora_controlnet$", "of a control LoRA, which makes a ControlNet"),
    (
        r"^(emb_params|string_to_\w+|string_to_param\..+)$",
        "an embedding for one text encoder; SDXL's has two",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The tensors of one module by their role, as keys of the file, and what multiplies their product.

    `alpha` is None where a tensor says it (role `alpha`), or nothing does: then it is the rank.
    """

    keys: Mapping[Role, str]
    alpha: float | None = None
    rank: int | None = None  # as PEFT recorded it, for a LoKr whose factors do not show it
    is_rslora: bool = False
    neumann_terms: int | None = None  # of OFT's Cayley transform as a series; None: exact


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a file is. `left_out` are keys that do not act, by the reason; `word` is null for a LoRA."""

    kind: Literal["low_rank", "embedding"]
    header: Header
    layers: Mapping[Part, Mapping[str, Layer]] = field(default_factory=dict)
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    word: str | None = None


def adapter_path(path: Path) -> Path:
    """The file itself, where `path` is the folder it was saved in. Raises ModelError where there is none."""
    if not path.is_dir():
        return path
    for name in (LORA_FILE, EMBEDDING_FILE, PEFT_FILE):
        if (path / name).is_file():
            return path / name
    raise ModelError(
        f"adapter {path} cannot be read: give the file itself; this folder has neither {LORA_FILE} nor "
        f"{EMBEDDING_FILE} nor {PEFT_FILE}"
    )


def read_layout(path: Path) -> Layout:
    """What an adapter's file, or the folder it lies in, holds. The numbers are not read.

    Raises ModelError where the file cannot be read, is of another kind, or could not act.
    """
    path = adapter_path(path)
    try:
        header = read_header(path)
        if any(key in header.shapes for key in CLIP_KEYS):
            return _embedding(path, header)
        return _low_rank(path, header)
    except ModelError as error:
        raise ModelError(
            f"adapter {error}" if str(path) in str(error) else f"adapter {path}: {error}"
        ) from None


def _embedding(path: Path, header: Header) -> Layout:
    allowed = (*CLIP_KEYS, *(f"{key}_start" for key in CLIP_KEYS))
    for key, shape in header.shapes.items():
        if key not in allowed or len(shape) != 2:
            raise ModelError(f"embedding has {key}; allowed: {', '.join(allowed)}, [n, D]")
    lengths = {shape[0] for shape in header.shapes.values()}
    if not all(key in header.shapes for key in CLIP_KEYS) or len(lengths) != 1 or 0 in lengths:
        raise ModelError("embedding must have as many vectors in clip_l as in clip_g, one or more")
    # Files of other tools carry no word: as in A1111 and ComfyUI, the file's name is the word.
    return Layout(kind="embedding", header=header, word=header.metadata.get("word", path.stem.lower()))


def _low_rank(path: Path, header: Header) -> Layout:
    left_out: dict[str, list[str]] = {}
    found: dict[Part, dict[str, dict[Role, str]]] = {part: {} for part in PARTS}
    doubled = _in_both_namings(header.shapes)
    for key in header.shapes:
        reason = next((reason for start, reason in LEFT_OUT if key.startswith(start)), None)
        if doubled and any(name in key for name in SGM):
            reason = "the same modules are there under diffusers' names, which stock diffusers takes"
        if reason is not None:
            left_out.setdefault(reason, []).append(key)
            continue
        part, module, role = _place(key)
        if role in found[part].setdefault(module, {}):
            raise ModelError(f"{key} and {found[part][module][role]} are of one module")
        found[part][module][role] = key
    config = _config(path, header)
    layers = {
        part: {module: _layer(part, module, keys, header, config) for module, keys in sorted(modules.items())}
        for part, modules in found.items()
    }
    if not any(layers.values()):
        raise ModelError("nothing in it is a part of a LoRA")
    return Layout(
        kind="low_rank",
        header=header,
        layers=layers,
        left_out={reason: tuple(keys) for reason, keys in left_out.items()},
    )


def _in_both_namings(keys: Mapping[str, Any]) -> bool:
    """True where a flat file names blocks as sgm does and as diffusers does too."""
    flat = [key for key in keys if key.startswith(FLAT)]
    sgm = [key for key in flat if any(name in key for name in SGM)]
    own = [key for key in flat if any(name in key for name in ("down_blocks", "mid_block", "up_blocks"))]
    return bool(sgm) and bool(own)


def _place(key: str) -> tuple[Part, str, Role]:
    """The part and the module that a tensor belongs to, and what it does there."""
    for pattern, reason in REFUSED:
        if re.search(pattern, key):
            raise ModelError(f"{key} is {reason}")
    if family := FAMILIES.search(key):
        role, name = family[1], key[: family.start()]
    else:
        matches = ((role, pattern.search(key)) for role, pattern in ROLES)
        role, name = next(((role, key[: m.start()]) for role, m in matches if m), ("", ""))
    if not role:
        raise ModelError(
            f"{key} is no tensor of a LoRA; allowed: lora_A, lora_B, lora_down, lora_up, alpha …"
        )
    part, module = _module(key, name.removeprefix("base_model.model."))
    return part, module, role


def _module(key: str, name: str) -> tuple[Part, str]:
    part = next((part for prefix, part in PREFIXES if name.startswith(prefix)), None)
    if part is None:
        if (module := unet_module(name)) is not None:  # as the UNet itself saves them
            return "unet", module
        if text_module(name, "text_encoder") is not None:
            raise ModelError(
                f"{key} does not say which of the two text encoders it is of; name it text_encoder.… or "
                "text_encoder_2.…"
            )
        raise ModelError(f"{key} is of no part of SDXL; it was made for another model")
    inner = name.removeprefix(next(prefix for prefix, _ in PREFIXES if name.startswith(prefix)))
    inner = inner.removeprefix("base_model.model.")
    found = unet_module(inner) if part == "unet" else text_module(inner, part)
    if found is None:
        what = "UNet" if part == "unet" else "text encoders"
        raise ModelError(f"{key} is of no module of SDXL's {what}; it was made for another model")
    return part, found


def _layer(
    part: Part, module: str, keys: Mapping[Role, str], header: Header, config: Mapping[str, Any]
) -> Layer:
    where = f"{part}.{module}"
    if "alpha" in keys and header.shapes[keys["alpha"]] not in ((), (1,)):
        raise ModelError(f"{keys['alpha']} must be one number")
    if any(role.startswith("oft") for role in keys):
        _check_oft(where, keys, header)
        is_series = "oft_R" in keys and config.get(f"{part}.use_cayley_neumann", True)
        return Layer(
            keys=keys,
            neumann_terms=config.get(f"{part}.num_cayley_neumann_terms", PEFT_TERMS) if is_series else None,
        )
    if any(role.startswith(("hada", "lokr")) for role in keys):
        _check_family(where, keys, header)
    else:
        _check_lora(where, keys, header)
    if "alpha" in keys or f"{part}.lora_alpha" not in config:
        return Layer(keys=keys)
    patterns = config.get(f"{part}.alpha_pattern") or {}
    alpha = next((value for name, value in patterns.items() if _is_named(module, name)), None)
    return Layer(
        keys=keys,
        alpha=float(config[f"{part}.lora_alpha"] if alpha is None else alpha),
        rank=config.get(f"{part}.r"),
        is_rslora=bool(config.get(f"{part}.use_rslora")),  # what is not there is off, as in PEFT
    )


def _is_named(module: str, pattern: str) -> bool:
    """PEFT's rule for a name in `alpha_pattern`: the module's, or the end of it behind a dot."""
    name = pattern.removeprefix("^").removesuffix("$").removeprefix(TEXT_BODY)
    return module == name or (not pattern.startswith("^") and module.endswith(f".{name}"))


def _check_lora(where: str, keys: Mapping[Role, str], header: Header) -> None:
    for role in ("down", "up"):
        if role not in keys:
            held = ", ".join(keys.values())
            raise ModelError(f"{where} must have lora_A and lora_B (or lora_down, lora_up); it has {held}")
    down, up = (header.shapes[keys[role]] for role in ("down", "up"))
    mid = header.shapes[keys["mid"]] if "mid" in keys else None
    rank = down[0] if down else 0
    fits = len(down) == len(up) and len(up) in (2, 4) and up[1] == rank > 0 and up[2:] in ((), (1, 1))
    if mid is not None:
        fits &= len(mid) == 4 and mid[:2] == (rank, rank) and down[2:] == (1, 1)
    if not fits:
        raise ModelError(f"{where} must have lora_A and lora_B of one rank; they are {down} and {up}")
    if "magnitude" in keys:
        shape = header.shapes[keys["magnitude"]]
        outputs = max(shape, default=1)
        if sum(size != 1 for size in shape) > 1 or outputs != up[0]:
            raise ModelError(
                f"{keys['magnitude']} has shape {shape}; only a DoRA with one magnitude per output "
                f"({up[0]} here) can be read, as PEFT's and LyCORIS's wd_on_output have it"
            )


def _check_family(where: str, keys: Mapping[Role, str], header: Header) -> None:
    """LoHa has four factors; LoKr two, each whole or of two."""
    roles = keys.keys() - {"alpha"}
    if roles & {"lokr_t2", "hada_t1", "hada_t2", "magnitude"}:
        raise ModelError(f"{where} is a LoHa or LoKr with Tucker factors or DoRA, which cannot be read")
    hada = {f"hada_w{n}_{side}" for n in "12" for side in "ab"}
    whole, halves = {"lokr_w1", "lokr_w2"}, {n: {f"lokr_w{n}_a", f"lokr_w{n}_b"} for n in "12"}
    allowed = [
        hada,
        whole,
        {"lokr_w1"} | halves["2"],
        halves["1"] | {"lokr_w2"},
        halves["1"] | halves["2"],
    ]
    if roles not in allowed:
        raise ModelError(f"{where} is no whole LoHa or LoKr; it has {', '.join(sorted(roles))}")
    shapes = {role: header.shapes[keys[role]] for role in roles}
    if not _fit_together(shapes):
        told = ", ".join(f"{role} {shape}" for role, shape in sorted(shapes.items()))
        raise ModelError(f"{where} is a LoHa or LoKr whose factors do not fit together: {told}")


def _fit_together(shapes: Mapping[Role, tuple[int, ...]]) -> bool:
    """Whether each pair of factors has one rank, and a LoHa's two products one shape."""
    if not all(len(shape) in (2, 4) and 0 not in shape for shape in shapes.values()):
        return False
    first = {role: shape for role, shape in shapes.items() if role.endswith("_a")}
    if any(len(shape) != 2 or shape[1] != shapes[f"{role[:-1]}b"][0] for role, shape in first.items()):
        return False
    products = [
        (shapes[f"hada_w{n}_a"][0], math.prod(shapes[f"hada_w{n}_b"][1:]))
        for n in "12"
        if f"hada_w{n}_a" in shapes
    ]
    return len(set(products)) < 2


def _check_oft(where: str, keys: Mapping[Role, str], header: Header) -> None:
    """PEFT keeps each block's numbers above the diagonal, kohya and LyCORIS whole blocks and a constraint."""
    if "oft_R" in keys:
        shape = header.shapes[keys["oft_R"]]
        fits = len(keys) == 1 and len(shape) == 2 and oft_block_size(shape[1]) is not None
    else:
        shape = header.shapes[keys["oft_blocks"]]
        fits = keys.keys() <= {"oft_blocks", "alpha"} and len(shape) == 3 and shape[1] == shape[2]
    if not fits:
        what = "a BOFT, which" if len(shape) == 4 else f"no OFT with blocks of {shape} alone, and"
        raise ModelError(f"{where} is {what} cannot be read")


def oft_block_size(numbers: int) -> int | None:
    """The size of a block with so many numbers above its diagonal; None if there is none."""
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    return size if numbers > 0 and size * (size - 1) == 2 * numbers else None


def _config(path: Path, header: Header) -> dict[str, Any]:
    """rank, alpha and the like of each part, as PEFT names them: of diffusers' header or PEFT's own file."""
    text, prefix = header.metadata.get(METADATA_KEY), ""
    beside = path.with_name(PEFT_CONFIG)
    if text is None and path.name == PEFT_FILE and beside.is_file():
        text, prefix = beside.read_text(encoding="utf-8"), "unet."
    elif any(key.startswith(FLAT) for key in header.shapes):
        return {}  # kohya's layout keeps alphas as tensors
    try:
        config = {} if text is None else json.loads(text)
        assert isinstance(config, dict)
        if config.get("peft_type") == "OFT":  # its r is of another kind, and 0 where blocks have a size
            config.pop("r", None)
        named = {f"{prefix}{key}": value for key, value in config.items()}
        for key, value in named.items():
            _check_entry(key, value)
        if f"{prefix}alpha" in named:  # PEFT's name of it for LoHa and LoKr
            named[f"{prefix}lora_alpha"] = named[f"{prefix}alpha"]
    except (ValueError, AssertionError) as error:
        raise ModelError(
            f"what it says of rank and alpha is no JSON mapping that can be used ({error})"
        ) from error
    return named


def _check_entry(key: str, value: Any) -> None:
    name = key.rpartition(".")[2]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in ("lora_alpha", "alpha", "r") and not (is_number and 0 < value <= MOST_ALPHA):
        raise ValueError(f"{key} must be a number above 0, at most {MOST_ALPHA:,}")
    if name == "alpha_pattern" and value:
        if not isinstance(value, dict) or not all(isinstance(v, int | float) for v in value.values()):
            raise ValueError(f"{key} must map names to numbers")
        for pattern in value:
            if re.search(r"[^\w.^$]", pattern):
                raise ModelError(f"{key} has {pattern!r}, which is no plain name of modules")
    if name == "num_cayley_neumann_terms" and not (isinstance(value, int) and 1 <= value <= 100):
        raise ValueError(f"{key} must be a number of terms, from 1 to 100")
    if name in ("lora_bias", "use_qalora") and value:
        raise ModelError(f"it uses {name}, which cannot act row by row; allowed: LoRA, rsLoRA, DoRA")
    if name in ("coft", "block_share") and value:
        raise ModelError(f"it uses {name}, which cannot be read; allowed: OFT with blocks of their own")
    if name == "peft_type" and value not in PEFT_TYPES:
        raise ModelError(f"it is PEFT's {value}; allowed: {', '.join(PEFT_TYPES)}")


def described(layout: Layout) -> str:
    """What the file holds, in one line."""
    if layout.kind == "embedding":
        vectors = layout.header.shapes[CLIP_KEYS[0]][0]
        return f"embedding of {layout.word!r}, {vectors} {'vector' if vectors == 1 else 'vectors'}"
    parts = [f"{part} {len(layers)}" for part, layers in layout.layers.items() if layers]
    left = [f"left out: {len(keys)} × {keys[0]} ({reason})" for reason, keys in layout.left_out.items()]
    return "; ".join([f"layers: {', '.join(parts)}", *left])
