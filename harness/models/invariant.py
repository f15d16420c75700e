"""Layers whose results for a row do not depend on how many rows there are, bit for bit.

On a CPU PyTorch chooses a kernel by the number of rows in two places: a convolution of one small picture
takes another way than one of several, and a matrix product of a few rows takes another than one of many. Both
are brought onto one way each. Then a picture drawn alone equals the same one in a batch, and a run trained
alone equals the same one in a pack, in fp32 and with oneDNN's kernels on one machine.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]

ROWS = 16  # of one matrix product; as many rows as a small picture has pixels take this way anyway
SMALL = 1024  # pixels: PyTorch's GroupNorm sums larger pictures up by thread where channels come last


class InvariantLinear(torch.nn.Linear):
    """A linear layer that works on a row or a few, such as a time embedding, always in blocks of ROWS."""

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.Linear`; compiled, rows are few as they come, for it rounds as it likes anyway."""
        if input.ndim != 2 or torch.compiler.is_compiling():
            return F.linear(input, self.weight, self.bias)
        rows = len(input)
        # What the other rows of a block are does not matter.
        padded = input.expand(ROWS, -1) if rows == 1 else F.pad(input, (0, 0, 0, -rows % ROWS))
        if rows <= ROWS:
            return self._few(padded)[:rows]
        return torch.cat([self._few(block) for block in padded.split(ROWS)])[:rows]

    def _few(self, x_NI: Tensor) -> Tensor:
        if not in_training(self):
            return F.linear(x_NI, self.weight, self.bias)
        if x_NI.requires_grad:
            out_NO: Tensor = _Product.apply(x_NI, self)
            return out_NO
        return self.product(x_NI)

    def product(self, x: Tensor) -> Tensor:
        """Without autograd, by the weight turned over: faster for the few rows of a small picture."""
        weight = self.weight
        state = weight.data_ptr(), weight._version
        known, turned = _TURNED.get(self, (None, weight))
        if known != state:
            with torch.no_grad():
                turned = weight.detach().t().contiguous().t()  # inputs first in memory
            _TURNED[self] = state, turned
        return F.linear(x, turned, self.bias)


class _Product(torch.autograd.Function):
    """`InvariantLinear.product`, and the way back to its input."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, layer: InvariantLinear) -> Tensor:
        ctx.weight = layer.weight
        return layer.product(x_NI)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return torch.mm(gradients[0], ctx.weight), None


class InvariantConv2d(torch.nn.Conv2d):
    """A convolution that always takes oneDNN's kernel, there and back.

    In training small pictures come out with their channels last, as the attention takes them without a copy.
    Compiled it is PyTorch's own: torch.compile does not know the kernel, and rounds as it likes anyway.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            return super()._conv_forward(input, weight, bias)
        if not in_training(self):
            assert not isinstance(self.padding, str)
            return torch.mkldnn_convolution(input, weight, bias, self.padding, self.stride, (1, 1), 1)
        if input.requires_grad:
            out: Tensor = _Convolution.apply(input, self)
            return out
        return self.kernels(input.shape).convolved(input)

    def kernels(self, shape: torch.Size) -> "Kernels":
        """For pictures of this size: made once, for the base is frozen."""
        state = self.weight.data_ptr(), self.weight._version, shape[-2:]
        known, kernels = _KERNELS.get(self, (None, None))
        if known != state:
            with torch.no_grad():
                kernels = Kernels(self, shape[-2:])
            _KERNELS[self] = state, kernels
        assert kernels is not None
        return kernels


class Kernels:
    """A frozen convolution's weights as oneDNN wants them: else it would lay them out anew in each call.

    The gradient of its input is the convolution of the output's with the kernel turned round.
    """

    def __init__(self, layer: InvariantConv2d, size: torch.Size) -> None:
        weight, reorder = layer.weight.detach(), torch.ops.mkldnn._reorder_convolution_weight
        outputs, inputs, *kernel = weight.shape
        self._bias, self._stride, self._size, self._kernel = layer.bias, layer.stride, size, kernel
        assert not isinstance(layer.padding, str)
        self._padding = layer.padding
        self._there = reorder(weight, self._padding, self._stride, (1, 1), 1, (1, inputs, *size))
        border = [k - 1 - p for k, p in zip(kernel, self._padding, strict=True)]
        self._around = border  # the gradient: zeros, those between its pixels apart
        back = [n + 2 * p - k + 1 for n, p, k in zip(size, self._padding, kernel, strict=True)]
        if self._stride != (1, 1):
            border, back = [0, 0], [n + k - 1 for n, k in zip(size, kernel, strict=True)]
        self._border = border
        turned = weight.flip(2, 3).transpose(0, 1).contiguous()
        self._back = reorder(turned, border, (1, 1), (1, 1), 1, (1, outputs, *back))

    def convolved(self, x: Tensor) -> Tensor:
        """The output, without autograd."""
        return _convolved(x, self._there, self._bias, self._padding, self._stride)

    def back(self, gradient: Tensor) -> Tensor:
        """The gradient of the input."""
        if self._stride != (1, 1):
            gradient = self._spread(gradient)
        return _convolved(gradient, self._back, None, self._border, (1, 1))

    def _spread(self, gradient: Tensor) -> Tensor:
        """Zeros between the pixels, as many as the stride left out, and around them."""
        height, width = (n + k - 1 for n, k in zip(self._size, self._kernel, strict=True))
        spread = gradient.new_zeros(*gradient.shape[:2], height, width)
        rows, columns = (
            slice(first, first + 1 + (n - 1) * step, step)
            for first, n, step in zip(self._around, gradient.shape[-2:], self._stride, strict=True)
        )
        spread[:, :, rows, columns] = gradient
        return spread


class _Convolution(torch.autograd.Function):
    """A frozen convolution with its gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: InvariantConv2d) -> Tensor:
        ctx.kernels = layer.kernels(input.shape)
        out: Tensor = ctx.kernels.convolved(input)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.kernels.back(gradients[0]), None


def _convolved(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: Any, stride: Any) -> Tensor:
    last = x.shape[-2] * x.shape[-1] < SMALL
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    convolve = torch.ops.mkldnn._convolution_pointwise.default
    out: Tensor = convolve(x, kernel, bias, padding, stride, (1, 1), 1, "none", [], "")
    return out


def in_training(layer: torch.nn.Linear | torch.nn.Conv2d) -> bool:
    """Where gradients are kept, and none of the layer's own."""
    return torch.is_grad_enabled() and not (layer.weight.requires_grad or torch.compiler.is_compiling())


# What was made of a layer's weight, and of which version of it.
_TURNED: WeakKeyDictionary[InvariantLinear, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()
_KERNELS: WeakKeyDictionary[InvariantConv2d, tuple[tuple[int, int, torch.Size], Kernels]] = (
    WeakKeyDictionary()
)


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
        and not isinstance(layer.padding, str)
        and all(p < k for p, k in zip(layer.padding, layer.kernel_size, strict=True))
    )
