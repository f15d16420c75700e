"""Part 2: adapters of mixed ranks, padded to the highest as in the harness, against grouped products."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.parts import Measurement, Part, Row, Values
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.training import numbers
from benchmarks.timing import now

LAYERS = ((4096, 640), (1024, 1280))  # tokens of an image of 1024 px, and the width, where SDXL has attention
RANKS = ((8, 8, 8, 8, 8, 8, 8, 8), (8, 8, 8, 8, 16, 16, 32, 64), (8, 8, 8, 8, 8, 8, 8, 128))


def part(setting: Setting, *, limit: float) -> Part:
    """B A x of one row for each adapter, forwards and backwards, in the base's precision."""
    return Part(
        name="products",
        title="Products of mixed ranks",
        limit=limit,
        measurements=lambda: _measurements(setting),
        columns=_columns,
    )


def _measurements(setting: Setting) -> list[Measurement]:
    layers = ((64, 64),) if setting.small else LAYERS
    return [
        Measurement(
            what={
                "layer": f"{tokens} tokens × {width}",
                "ranks": " ".join(map(str, ranks)),
                "way": way,
            },
            measure=partial(_measured, setting, product, tokens, width, ranks),
        )
        for tokens, width in layers
        for ranks in RANKS
        for way, product in (("padded bmm", padded), ("grouped_mm", grouped))
    ]


Product = Callable[[Tensor], Tensor]  # x [K, T, I] → [K, T, O]


def padded(down_IR: Tensor, up_RO: Tensor, ranks: Sequence[int]) -> Product:
    """As `harness.diffusion.adapters.grouped`: two batched products, lower ranks padded with zeros once.

    `down_IR` and `up_RO` are all K adapters' A and B side by side.
    """
    most, own = max(ranks), list(ranks)
    downs = [F.pad(one, (0, most - one.shape[1])) for one in down_IR.split(own, dim=1)]
    ups = [F.pad(one, (0, 0, 0, most - len(one))) for one in up_RO.split(own)]
    down_KIR = torch.stack(downs).detach().requires_grad_()
    up_KRO = torch.stack(ups).detach().requires_grad_()
    return lambda x_KTI: torch.bmm(torch.bmm(x_KTI, down_KIR), up_KRO)


def grouped(down_IR: Tensor, up_RO: Tensor, ranks: Sequence[int]) -> Product:
    """Two grouped products, in which each adapter has its own rank."""
    ends = torch.tensor(ranks, device=down_IR.device).cumsum(0).int()
    down_IR, up_RO = down_IR.detach().requires_grad_(), up_RO.detach().requires_grad_()
    return lambda x_KTI: F.grouped_mm(F.grouped_mm(x_KTI, down_IR, offs=ends), up_RO, offs=ends)


def _measured(
    setting: Setting,
    way: Callable[[Tensor, Tensor, Sequence[int]], Product],
    tokens: int,
    width: int,
    ranks: Sequence[int],
) -> Values:
    device = setting.model.device
    dtype = torch.float32 if setting.small else torch.bfloat16

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    product = way(drawn(width, sum(ranks)), drawn(sum(ranks), width), ranks)
    x_KTI = drawn(len(ranks), tokens, width).requires_grad_()
    direction_KTO = drawn(len(ranks), tokens, width)

    def seconds(times: int) -> float:
        start = now(device)
        for _ in range(times):
            product(x_KTI).backward(direction_KTO)
        return now(device).since(start, items=times).wall

    seconds(1)
    return {"s": seconds(max(1, min(1000, int(setting.seconds / 4 / seconds(3)))))}


def _columns(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    seconds = numbers(row)["s"]
    same = [r for r in rows if {**r.what, "way": ""} == {**row.what, "way": ""} and r.values is not None]
    return {
        "ms, forwards and backwards": f"{1000 * seconds:.3f}",
        "times as fast": f"{numbers(same[0])['s'] / seconds:.2f}" if len(same) == 2 else "–",
    }
