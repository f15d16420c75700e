"""An adapter's tensors in kohya's key layout, which A1111 and ComfyUI read too.

    unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight

Both hold the same matrices. The scale is where they differ: diffusers keeps one alpha in the file's header,
kohya one per module as a tensor, always divided by the rank. A DoRA's magnitudes are a vector here and
`dora_scale` there, with as many axes as the weight.

kohya trains SDXL on Stability AI's own UNet (`sgm`), whose names stand for SDXL's shape alone. A UNet of
another shape keeps diffusers' names with underscores, as kohya's files for SD 1.5 do.
"""

from typing import Literal

import torch

from harness.config.weights.names import to_sgm
from harness.errors import ModelError

State = dict[str, torch.Tensor]
Blocks = Literal["sgm", "diffusers"]

SUFFIXES = {  # diffusers' name of a module's tensor: kohya's
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
    **{f"{name}_{side}": f"{name}_{side}" for name in ("hada_w1", "hada_w2") for side in "ab"},
    **{f"lokr_w{n}{side}": f"lokr_w{n}{side}" for n in "12" for side in ("", "_a", "_b")},
}
PARTS = {  # diffusers' name of the model's part: kohya's
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}


def to_kohya(state: State, *, alpha: float, blocks: Blocks = "sgm") -> State:
    """A LoRA's, LoHa's or LoKr's tensors under kohya's names, each module with its alpha.

    `state` is in diffusers' layout. `alpha` is what kohya divides by the rank: the adapter's scale times its
    rank, whatever its kind. `blocks: diffusers` is for a UNet that has not SDXL's shape.

    Raises ModelError for a tensor that kohya's layout has no name for.
    """
    converted: State = {}
    for key, tensor in sorted(state.items()):
        module, suffix = _split(key)
        name = _kohya_module(key, module, blocks)
        if suffix == "lora_magnitude_vector":
            tensor = _as_dora_scale(tensor, state[f"{module}.lora_B.weight"])
        converted[f"{name}.alpha"] = torch.tensor(float(alpha))
        converted[f"{name}.{SUFFIXES[suffix]}"] = tensor.contiguous()
    return converted


def _as_dora_scale(magnitude: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """PEFT's vector [O] (of a convolution [1, O, 1, 1]) with the weight's axes, its first one O."""
    return magnitude.reshape(up.shape[0], *[1] * (up.ndim - 1))


def _split(key: str) -> tuple[str, str]:
    if key.endswith(".lora_magnitude_vector.weight"):  # as transformers has the text encoders'
        key = key.removesuffix(".weight")
    for suffix in SUFFIXES:
        if key.endswith(f".{suffix}"):
            return key.removesuffix(f".{suffix}"), suffix
    allowed = ", ".join(SUFFIXES)
    raise ModelError(f"{key} has no name in kohya's layout; allowed: <part>.<module>. and {allowed}")


def _kohya_module(key: str, module: str, blocks: Blocks) -> str:
    part, _, inner = module.partition(".")
    if part not in PARTS or not inner:
        raise ModelError(f"{key} is of no part that an adapter acts on; allowed: {', '.join(PARTS)}")
    if part != "unet":  # transformers 5 dropped `text_model` from the first encoder; files keep it
        return f"{PARTS[part]}_text_model_" + inner.removeprefix("text_model.").replace(".", "_")
    flat = inner.replace(".", "_")
    name = flat if blocks == "diffusers" else to_sgm(flat)
    if name is None:
        raise ModelError(f"{key} is of no module of SDXL's UNet, so it has no name in kohya's layout")
    return f"{PARTS[part]}_{name}"
