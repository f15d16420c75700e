"""Layers whose results for a row do not depend on how many rows there are, bit for bit.

On a CPU PyTorch chooses a kernel by the number of rows in two places: a convolution of one small picture
takes another way than one of several, and a matrix product of a few rows takes another than one of many. Both
are brought onto one way each. Then a picture drawn alone equals the same one in a batch, and a run trained
alone equals the same one in a pack, in fp32 and with oneDNN's kernels on one machine.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

_TURNED = WeakTensorKeyDictionary()  # by weight: its version and what `_turned` gives

ROWS = 16  # of one matrix product; as many rows as a small picture has pixels take this way anyway


class InvariantLinear(torch.nn.Linear):
    """A linear layer that works on a row or a few, such as a time embedding, always in blocks of ROWS."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.Linear`."""
        if input.ndim != 2:
            return super().forward(input)
        rows = len(input)
        blocks = F.pad(input, (0, 0, 0, -rows % ROWS)).split(ROWS)
        return torch.cat([F.linear(block, self.weight, self.bias) for block in blocks])[:rows]


class InvariantConv2d(torch.nn.Conv2d):
    """A convolution that always takes oneDNN's kernel, there and back.

    Compiled it is PyTorch's own: torch.compile does not know the kernel, and rounds as it likes anyway.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            return super()._conv_forward(input, weight, bias)
        if not torch.is_grad_enabled() or not input.requires_grad or weight.requires_grad:
            return _convolved(input, weight, bias, self.padding, self.stride)
        out: Tensor = _Convolution.apply(input, weight, bias, self.padding, self.stride)
        return out


class _Convolution(torch.autograd.Function):
    """A frozen convolution. Its gradient is the convolution of the output's with the kernel turned round."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, input: Tensor, weight: Tensor, bias: Tensor | None, padding: Any, stride: Any
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.padding, ctx.stride = input.shape[-2:], padding, stride  # type: ignore[attr-defined]
        return _convolved(input, weight, bias, padding, stride)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        sides = [
            (kernel - 1 - padding, size + 2 * padding - kernel - stride * (out - 1))
            for kernel, padding, size, stride, out in zip(
                weight.shape[-2:], ctx.padding, ctx.size, ctx.stride, gradient.shape[-2:], strict=True
            )
        ]
        if tuple(ctx.stride) != (1, 1):
            gradient = _spread(gradient, ctx.stride)
        (top, below), (left, right) = sides
        padded = F.pad(gradient, (left, left + right, top, top + below))
        return _convolved(padded, _turned(weight), None, (0, 0), (1, 1)), None, None, None, None


def _turned(weight: Tensor) -> Tensor:
    """The kernel for the way back, made once: the base is frozen."""
    version, turned = _TURNED.get(weight, (-1, weight))
    if version != weight._version:
        turned = weight.flip(2, 3).transpose(0, 1).contiguous()
        _TURNED[weight] = weight._version, turned
    return turned


def _spread(picture: Tensor, stride: tuple[int, int]) -> Tensor:
    """Zeros between the pixels, as many as the stride left out."""
    height, width = ((side - 1) * step + 1 for side, step in zip(picture.shape[-2:], stride, strict=True))
    spread = picture.new_zeros(*picture.shape[:2], height, width)
    spread[:, :, :: stride[0], :: stride[1]] = picture
    return spread


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Any, stride: Any) -> Tensor:
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1), 1)


def make_invariant(module: torch.nn.Module) -> None:
    """Give the module's layers these classes, where they apply: in fp32, on a CPU with oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return
    for layer in module.modules():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = InvariantLinear
        elif type(layer) is torch.nn.Conv2d and _is_plain(layer):
            layer.__class__ = InvariantConv2d


def _is_plain(layer: torch.nn.Conv2d) -> bool:
    return (
        layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and (not isinstance(layer.padding, str))
    )
