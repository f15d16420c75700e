"""Rows in groups, each with its own A and B: as if each group were alone."""

import pytest
import torch

from harness.diffusion.adapters.grouped import RANKS, Span, add_low_rank, spans


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([0, 1, 2], [Span(start=0, each=1, groups=(0, 1, 2))]),
        ([0, 0, 1, 1], [Span(start=0, each=2, groups=(0, 1))]),
        ([0, 1, 1], [Span(start=0, each=1, groups=(0,)), Span(start=1, each=2, groups=(1,))]),
        ([None, 2, 2, None, 0, 0], [Span(start=1, each=2, groups=(2,)), Span(start=4, each=2, groups=(0,))]),
        ([1, 0, 1], [Span(start=0, each=1, groups=(1, 0, 1))]),
        ([None, None], []),
    ],
)
def test_neighbours_of_one_size_are_a_span(groups: list[int | None], expected: list[Span]):
    assert spans(groups) == expected


MODULES: dict[str, torch.nn.Linear | torch.nn.Conv2d] = {
    "linear": torch.nn.Linear(6, 5),
    "without_bias": torch.nn.Linear(6, 5, bias=False),
    "convolution": torch.nn.Conv2d(6, 5, 3, stride=2, padding=1),
    "projection": torch.nn.Conv2d(6, 5, 1),
}


@pytest.mark.parametrize("groups", [[0, 0, 1, 1, 2, 2], [2, 0, None, 1, 1, None], [1, 1, 1, 1, 1, 0]])
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dora", [False, True])
def test_each_row_is_as_if_alone_with_its_matrices(kind: str, groups: list[int | None], dora: bool):
    module = MODULES[kind]
    module.requires_grad_(False)
    shape = (6, 6, 7, 8) if isinstance(module, torch.nn.Conv2d) else (6, 4, 6)
    x = torch.randn(shape, generator=seeded(0))
    kernel = tuple(module.weight.shape[2:])
    down = torch.randn(3, RANKS, 6, *kernel, generator=seeded(1), requires_grad=True)
    up_GRO = torch.randn(3, RANKS, 5, generator=seeded(2), requires_grad=True)
    more_GO = torch.randn(3, 5, generator=seeded(3)) if dora else None
    base = module(x)
    together = add_low_rank(module, x, base, spans(groups), down=down, up_GRO=up_GRO, more_GO=more_GO)
    expected = []
    for row, group in enumerate(groups):
        if group is None:
            expected.append(base[row])
            continue
        delta = (up_GRO[group].T @ down[group].flatten(1)).view(module.weight.shape)
        if more_GO is not None:
            delta = delta + more_GO[group].view(-1, *[1] * (delta.ndim - 1)) * module.weight
        whole = torch.func.functional_call(module, {"weight": module.weight + delta}, (x[row : row + 1],))
        expected.append(whole[0])
    torch.testing.assert_close(together, torch.stack(expected), rtol=1e-4, atol=1e-4)
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), (down, up_GRO), retain_graph=True)
        for out in (together, torch.stack(expected))
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)


def test_a_row_without_a_group_is_the_bases_bit_for_bit():
    module = MODULES["linear"]
    x = torch.randn(3, 4, 6, generator=seeded(0))
    down, up_GRO = torch.randn(1, 8, 6), torch.randn(1, 8, 5)
    rows = spans([None, 0, None])
    out = add_low_rank(module, x, module(x), rows, down=down, up_GRO=up_GRO, more_GO=None)
    assert torch.equal(out[[0, 2]], module(x)[[0, 2]]) and not torch.equal(out[1], module(x)[1])
