"""A row's numbers do not depend on how many rows there are."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from harness.models import load_model
from harness.models.invariant import InvariantConv2d, InvariantLinear, make_invariant
from harness.models.model import DrawSettings, Row
from harness.models.spec import EmojiModel

needs_avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="bit for bit with AVX-512's kernels"
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "side"),
    [(3, 1, 1, 8), (1, 1, 0, 5), (3, 2, 1, 8), (3, 2, 1, 7), (4, 3, 2, 11), (3, (1, 2), (0, 1), 6)],
)
def test_a_convolution_is_pytorchs_there_and_back(kernel: int, stride: int, padding: int, side: int):
    plain = torch.nn.Conv2d(5, 7, kernel, stride, padding).requires_grad_(False)
    ours = copy.deepcopy(plain)
    make_invariant(ours)
    assert type(ours) is InvariantConv2d
    x = torch.randn(3, 5, side, side + 1, generator=seeded(0))
    outputs, gradients = [], []
    for layer in (plain, ours):
        given = x.clone().requires_grad_()
        outputs.append(layer(given))
        weights = torch.randn(outputs[-1].shape, generator=seeded(1))
        gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), given)[0])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_a_linear_layer_is_pytorchs(rows: int):
    plain = torch.nn.Linear(6, 4).requires_grad_(False)
    ours = copy.deepcopy(plain)
    make_invariant(ours)
    assert type(ours) is InvariantLinear
    for shape in ((rows, 6), (rows, 2, 6)):
        x = torch.randn(shape, generator=seeded(0))
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-5, atol=1e-6)


def test_layers_of_other_kinds_are_left_alone():
    others = torch.nn.Sequential(
        torch.nn.Conv2d(4, 4, 3, groups=2),
        torch.nn.Conv2d(4, 4, 3, padding="same"),
        torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        torch.nn.Conv2d(4, 4, 3, dilation=2),
        torch.nn.LayerNorm(4),
    )
    kinds = [type(layer) for layer in others]
    make_invariant(others)
    assert [type(layer) for layer in others] == kinds


@needs_avx512
def test_the_unet_gives_a_row_the_same_bits_in_every_batch():
    model = load_model(EmojiModel(), device="cpu")
    unet: UNet2DConditionModel = model._base.unet  # type: ignore[attr-defined]
    sample = torch.randn(16, 8, 8, 8, generator=seeded(0), requires_grad=True)
    words = model._words.negative("a red fox")  # type: ignore[attr-defined]

    def both(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, embeds = words.pooled_1P.expand(rows, -1), words.embeds_1TD.expand(rows, -1, -1)
        added = {"text_embeds": pooled, "time_ids": torch.full((rows, 6), 64.0)}
        out = unet(sample[:rows], torch.arange(rows) * 50, embeds, added_cond_kwargs=added).sample
        (back,) = torch.autograd.grad(out.square().sum(), sample)
        return out[0].detach(), back[0]

    alone = both(1)
    for rows in (2, 3, 5, 8, 16):
        together = both(rows)
        assert torch.equal(together[0], alone[0]) and torch.equal(together[1], alone[1])


@needs_avx512
def test_a_picture_is_the_same_bits_alone_and_in_a_batch():
    model = load_model(EmojiModel(), device="cpu")
    rows = [Row(prompt=f"a red {what}", negative="", seed=s, guidance=5.0) for s, what in enumerate("abcde")]
    settings = DrawSettings(steps=4, refiner_start=None)
    together = model.draw(rows, settings)
    alone = [model.draw([row], settings)[0] for row in rows]
    assert [p.image.tobytes() for p in together] == [p.image.tobytes() for p in alone]
