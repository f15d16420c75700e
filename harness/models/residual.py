"""The residual block of SDXL's UNet, forwards and backwards by hand.

Nothing in it is trained, unless adapters act on convolutions: then autograd does it, with the same numbers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.models.invariant import InvariantConv2d, in_training

aten = torch.ops.aten
Saved = tuple[Tensor, Tensor, Tensor, Tensor]


class _ResidualBlock(torch.autograd.Function):
    """x, or its shortcut, + convolution of SiLU of GroupNorm, twice; the time is added between."""

    @staticmethod
    def forward(ctx: Any, block: Any, x_BChw: Tensor, time_BC11: Tensor) -> Tensor:
        first, of_first = _activated(block.norm1, x_BChw)
        middle = block.conv1.kernels(first.shape).convolved(first).add_(time_BC11)
        second, of_second = _activated(block.norm2, middle)
        out: Tensor = block.conv2.kernels(second.shape).convolved(second)
        shortcut = block.conv_shortcut
        ctx.block = block
        ctx.save_for_backward(*of_first, *of_second)
        return out.add_(x_BChw if shortcut is None else shortcut.kernels(x_BChw.shape).convolved(x_BChw))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), block, saved = gradients, ctx.block, ctx.saved_tensors
        _, to_input, to_time = ctx.needs_input_grad
        size = gradient.shape
        back = block.conv2.kernels(size).back(gradient)
        back = _activated_back(block.norm2, back, saved[4:])
        time = back.sum(dim=(2, 3), keepdim=True) if to_time else None
        if not to_input:
            return None, None, time
        back = _activated_back(block.norm1, block.conv1.kernels(size).back(back), saved[:4])
        shortcut = block.conv_shortcut
        return None, back + (gradient if shortcut is None else shortcut.kernels(size).back(gradient)), time


def is_by_hand(block: Any) -> bool:
    """Where the convolutions are ours, and no adapter acts on them."""
    convolutions = [block.conv1, block.conv2, *([] if block.conv_shortcut is None else [block.conv_shortcut])]
    return all(
        type(layer) is InvariantConv2d and in_training(layer) and not layer._forward_hooks
        for layer in convolutions
    )


def by_hand(block: Any, x_BChw: Tensor, time_BC11: Tensor) -> Tensor:
    """The block's output."""
    out: Tensor = _ResidualBlock.apply(block, x_BChw, time_BC11)
    return out


def _activated(norm: torch.nn.GroupNorm, x_BChw: Tensor) -> tuple[Tensor, Saved]:
    rows, channels, height, width = x_BChw.shape
    normed, mean, rstd = torch.native_group_norm(
        x_BChw, norm.weight, norm.bias, rows, channels, height * width, norm.num_groups, norm.eps
    )
    return F.silu(normed), (x_BChw, normed, mean, rstd)


def _activated_back(norm: torch.nn.GroupNorm, gradient: Tensor, saved: Saved) -> Tensor:
    x_BChw, normed, mean, rstd = saved
    rows, channels, height, width = x_BChw.shape
    gradient = aten.silu_backward.default(gradient, normed)
    back: Tensor = aten.native_group_norm_backward.default(
        gradient,
        x_BChw,
        mean,
        rstd,
        norm.weight,
        rows,
        channels,
        height * width,
        norm.num_groups,
        [True, False, False],
    )[0]
    return back
