"""Low-rank products of many adapters in one: every row of a batch with its own A and B.

A LoRA adds scale · B A x to the output of a layer (Hu et al. 2021). Rows that share an adapter are a group;
groups of one size are one batched product, whatever adapters they are, as S-LoRA (Sheng et al. 2023) and
Punica (Chen et al. 2023) do for language models. Generation and training use the same function.

With a magnitude m (DoRA, Liu et al. 2024) the layer is m / ‖W + scale · B A‖ · (W + scale · B A): the gain
goes into B, and what the base itself gets of it is `more` = gain − 1, for its output without the bias.

Shape legend: B rows of the batch, n rows of a span, G groups, I in, O out, R rank, k kernel, N rows × tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

RANKS = 8  # ranks are padded to a multiple of it, which matrix units are made for


@dataclass(frozen=True, kw_only=True)
class Span:
    """Neighbouring rows from `start` on: `each` of them in each of the `groups`, in order."""

    start: int
    each: int
    groups: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first row behind it."""
        return self.start + self.each * len(self.groups)


def spans(groups: Sequence[int | None]) -> list[Span]:
    """From the group of each row, None if nothing acts: as few spans as rows that stay in order allow."""
    found: list[Span] = []
    row = 0
    for group, members in groupby(groups):
        each = len(list(members))
        if group is not None:
            last = found[-1] if found else None
            if last is not None and last.end == row and last.each == each:
                found[-1] = Span(start=last.start, each=each, groups=(*last.groups, group))
            else:
                found.append(Span(start=row, each=each, groups=(group,)))
        row += each
    return found


def add_low_rank(
    module: torch.nn.Module,
    x: Tensor,
    base: Tensor,
    rows: Sequence[Span] | None,
    *,
    down: Tensor,
    up_GRO: Tensor,
    more_GO: Tensor | None,
) -> Tensor:
    """`base`, the module's output for x, with B A x of each row's group added, in the base's precision.

    `down` is A: [G, R, I], or [G, R, I, k, k] for a convolution. `up_GRO` is B with its scale. Without
    `rows` all are of the only group.
    """
    down, up_GRO = down.to(base.dtype), up_GRO.to(base.dtype)
    x, more_GO = x.to(base.dtype), None if more_GO is None else more_GO.to(base.dtype)
    if rows is None:
        return _added(module, x, base, down, up_GRO, more_GO)
    if len(rows) == 1 and rows[0].start == 0 and rows[0].end == len(base):  # nothing to cut, nothing to join
        groups = rows[0].groups
        more_GO = None if more_GO is None else chosen(more_GO, groups)
        return _added(module, x, base, chosen(down, groups), chosen(up_GRO, groups), more_GO)
    pieces, row = [], 0
    for span in rows:
        pieces.append(base[row : span.start])
        pieces.append(
            _added(
                module,
                x[span.start : span.end],
                base[span.start : span.end],
                chosen(down, span.groups),
                chosen(up_GRO, span.groups),
                None if more_GO is None else chosen(more_GO, span.groups),
            )
        )
        row = span.end
    pieces = [piece for piece in (*pieces, base[row:]) if len(piece)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def chosen(of_groups: Tensor, groups: tuple[int, ...]) -> Tensor:
    """Those of the groups; a view where they are neighbours, and no new one where they are all."""
    first = groups[0]
    if len(groups) > 1 and groups != tuple(range(first, first + len(groups))):
        return of_groups[list(groups)]
    return of_groups if len(groups) == len(of_groups) else of_groups[first : first + len(groups)]


def _added(
    module: torch.nn.Module, x: Tensor, base: Tensor, down: Tensor, up_GRO: Tensor, more_GO: Tensor | None
) -> Tensor:
    """The rows of a span, its groups all of one size."""
    groups = len(up_GRO)
    if not isinstance(module, torch.nn.Conv2d):
        base_GNO = base.reshape(groups, -1, base.shape[-1])
        low_GNR = torch.bmm(x.reshape(groups, -1, x.shape[-1]), down.transpose(1, 2))
        result = torch.baddbmm(base_GNO, low_GNR, up_GRO)
        if more_GO is not None:
            result = result + more_GO[:, None] * _without_bias(module, base_GNO, (-1,))
        return result.view_as(base)
    added_GNO = torch.bmm(_side_by_side(module, x, down), up_GRO)
    result = base + added_GNO.view(len(base), *base.shape[2:], -1).permute(0, 3, 1, 2)
    if more_GO is not None:
        base_GnOhw = base.reshape(groups, -1, *base.shape[1:])
        more = more_GO[:, None, :, None, None] * _without_bias(module, base_GnOhw, (-1, 1, 1))
        result = result + more.view_as(base)
    return result


def _side_by_side(module: torch.nn.Conv2d, x: Tensor, down_GRIkk: Tensor) -> Tensor:
    """A convolution of all groups at once, [G, N, R], the groups beside each other in the channels."""
    assert not isinstance(module.padding, str)
    groups, rank = down_GRIkk.shape[:2]
    beside = x.reshape(groups, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
    kernel = down_GRIkk.flatten(0, 1)
    low = F.conv2d(beside, kernel, None, module.stride, module.padding, module.dilation, groups)
    return low.unflatten(1, (groups, rank)).permute(1, 0, 3, 4, 2).reshape(groups, -1, rank)


def _without_bias(module: torch.nn.Module, base: Tensor, spread: tuple[int, ...]) -> Tensor:
    return base if module.bias is None else base - module.bias.view(spread)  # type: ignore[operator]
