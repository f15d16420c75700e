"""Which layers of the model a low-rank adapter acts on."""

from collections.abc import Sequence

import torch

from harness.errors import ModelError
from harness.spec.adapter import LowRankAdapter, Target

TARGETS: dict[Target, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    # Of the residual blocks and of what changes the size, not the UNet's first and last layer.
    "convolutions": ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
}
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


def unet_targets(unet: torch.nn.Module, adapter: LowRankAdapter) -> list[str]:
    """The modules that a low-rank adapter acts on, by name. Raises ModelError for blocks that have none."""
    suffixes = tuple(f".{suffix}" for target in adapter.targets for suffix in TARGETS[target])
    names = sorted(name for name, _ in unet.named_modules() if name.endswith(suffixes))
    if adapter.blocks is None:
        return names
    for block in adapter.blocks:
        if not any(name.startswith(f"{block}.") for name in names):
            raise ModelError(
                f"adapter.blocks has {block}, where the UNet has nothing of {', '.join(adapter.targets)}; "
                f"there is {', '.join(_blocks(names))}"
            )
    return [name for name in names if name.startswith(tuple(f"{block}." for block in adapter.blocks))]


def text_targets(body: torch.nn.Module, *, whole: bool) -> list[str]:
    """The attention's projections: in every layer (`whole`), or in all but the last.

    SDXL takes the states before the last layer, which bears on the second encoder's pooled output alone.
    """
    names = sorted(name for name, _ in body.named_modules() if name.endswith(TEXT_TARGETS))
    last = max(int(name.split(".")[2]) for name in names)
    return [name for name in names if whole or not name.startswith(f"encoder.layers.{last}.")]


def _blocks(names: Sequence[str]) -> list[str]:
    """The blocks that hold these modules, and the attentions and residual blocks in them."""
    found = set()
    for name in names:
        pieces = name.split(".")
        depth = 1 if pieces[0] == "mid_block" else 2
        found.add(".".join(pieces[:depth]))
        if pieces[depth] in ("attentions", "resnets"):
            found.add(".".join(pieces[: depth + 2]))
    return sorted(found)
