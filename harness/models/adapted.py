"""A frozen linear layer with what low-rank adapters add to it, forwards and backwards by hand.

The same numbers as autograd's, with a third of its operations: what a step of one run takes on a small model
is the count of them. See `grouped.py` for the mathematics.

Shape legend: B rows of the batch, T tokens, N = B · T, G groups of a span, I in, O out, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.models.grouped import Span, chosen
from harness.models.invariant import InvariantLinear

Saved = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """What acts on a layer in one pass. `kept_BTI` is dropout's mask of the adapters' input."""

    rows: Sequence[Span]
    down_KRI: Tensor
    up_KRO: Tensor
    more_KO: Tensor | None
    kept_BTI: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Those that have gradients."""
        return self.down_KRI, self.up_KRO, self.more_KO


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """The layer and its factors, null where no adapter acts on it."""

    module: InvariantLinear
    factors: Factors | None

    @property
    def kept(self) -> int:
        """How many tensors `forward` gives for `backward`."""
        return 0 if self.factors is None else len(self.factors.rows) + (self.factors.more_KO is not None)

    def forward(self, x_BTI: Tensor) -> tuple[Tensor, Saved]:
        """The output [B, T, O], and what `backward` wants besides the input."""
        out_BTO = self.module.product(x_BTI)
        if self.factors is None:
            return out_BTO, ()
        f, saved = self.factors, []
        if f.more_KO is not None:
            saved.append(out_BTO.clone())
        x_BTI = x_BTI if f.kept_BTI is None else x_BTI * f.kept_BTI
        for span in f.rows:
            down_GRI, up_GRO = chosen(f.down_KRI, span.groups), chosen(f.up_KRO, span.groups)
            low_GNR = torch.bmm(_grouped(x_BTI, span), down_GRI.transpose(1, 2))
            saved.append(low_GNR)
            _grouped(out_BTO, span).baddbmm_(low_GNR, up_GRO)
            if f.more_KO is not None:
                base_GNO = _without_bias(self.module, _grouped(saved[0], span))
                _grouped(out_BTO, span).add_(chosen(f.more_KO, span.groups)[:, None] * base_GNO)
        return out_BTO, tuple(saved)

    def backward(
        self, gradient_BTO: Tensor, x_BTI: Tensor, saved: Saved, *, to_input: bool = True
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of the input, if asked for, and of the factors' tensors."""
        f = self.factors
        if f is None:
            return self._to_input(gradient_BTO) if to_input else None, []
        through_BTO, more_KO = gradient_BTO, None
        if f.more_KO is not None:
            through_BTO, more_KO = self._through_more(gradient_BTO, saved[0], f.more_KO)
            saved = saved[1:]
        back_BTI = self._to_input(through_BTO) if to_input else None
        own_BTI = x_BTI if f.kept_BTI is None else x_BTI * f.kept_BTI
        down_KRI, up_KRO = _Gathered(f.down_KRI), _Gathered(f.up_KRO)
        for span, low_GNR in zip(f.rows, saved, strict=True):
            gradient_GNO = _grouped(gradient_BTO, span)
            low_back_GNR = torch.bmm(gradient_GNO, chosen(f.up_KRO, span.groups).transpose(1, 2))
            up_KRO.add(span, torch.bmm(low_GNR.transpose(1, 2), gradient_GNO))
            down_KRI.add(span, torch.bmm(low_back_GNR.transpose(1, 2), _grouped(own_BTI, span)))
            if back_BTI is not None:
                added_GNI = torch.bmm(low_back_GNR, chosen(f.down_KRI, span.groups))
                if f.kept_BTI is not None:
                    added_GNI *= _grouped(f.kept_BTI, span)
                _grouped(back_BTI, span).add_(added_GNI)
        return back_BTI, [down_KRI.total, up_KRO.total, more_KO]

    def _to_input(self, gradient_BTO: Tensor) -> Tensor:
        return torch.matmul(gradient_BTO, self.module.weight)

    def _through_more(self, gradient_BTO: Tensor, base_BTO: Tensor, more_KO: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the base's output, and of `more`."""
        assert self.factors is not None
        through_BTO, gathered = gradient_BTO.clone(), _Gathered(more_KO)
        for span in self.factors.rows:
            gradient_GNO = _grouped(gradient_BTO, span)
            base_GNO = _without_bias(self.module, _grouped(base_BTO, span))
            gathered.add(span, (gradient_GNO * base_GNO).sum(dim=1))
            _grouped(through_BTO, span).add_(gradient_GNO * chosen(more_KO, span.groups)[:, None])
        return through_BTO, gathered.total


class _Gathered:
    """The gradient of a tensor of all groups, from those of the spans."""

    def __init__(self, of: Tensor) -> None:
        self._of = of
        self._total: Tensor | None = None

    def add(self, span: Span, gradient: Tensor) -> None:
        """A group is in one span or in several."""
        if self._total is None and chosen(self._of, span.groups) is self._of:
            self._total = gradient
            return
        if self._total is None:
            self._total = torch.zeros_like(self._of)
        self._total.index_add_(0, torch.tensor(span.groups), gradient)

    @property
    def total(self) -> Tensor:
        """Zero where no row was of a group."""
        return torch.zeros_like(self._of) if self._total is None else self._total


def _grouped(x_BTX: Tensor, span: Span) -> Tensor:
    """The rows of a span, [G, N, X]: a view."""
    if span.start != 0 or span.end != len(x_BTX):
        x_BTX = x_BTX[span.start : span.end]
    if span.each == 1:
        return x_BTX
    return x_BTX.view(len(span.groups), -1, x_BTX.shape[-1])


def _without_bias(module: torch.nn.Linear, base: Tensor) -> Tensor:
    return base if module.bias is None else base - module.bias
