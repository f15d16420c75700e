"""The blocks that training computes by hand give what autograd gives, and diffusers' own give."""

import copy
from typing import Any

import pytest
import torch

from harness.models import load_model, residual, transformer
from harness.models.blocks import LeanAttention, LeanBlock, LeanResnet, LeanTransformer, make_lean
from harness.models.invariant import make_invariant
from harness.models.model import Fresh, Model
from harness.models.spec import EmojiModel
from harness.spec.adapter import LowRankAdapter

EVERYWHERE = ("attention", "convolutions", "feed_forward")
PACKS: dict[str, tuple[list[LowRankAdapter], list[int]]] = {
    "one": ([LowRankAdapter(rank=8)], [1]),
    "several": (
        [LowRankAdapter(rank=8, alpha=3.0), LowRankAdapter(rank=12), LowRankAdapter(targets=EVERYWHERE)],
        [1, 2, 2],
    ),
    "dora and dropout": (
        [
            LowRankAdapter(kind="dora", rank=4),
            LowRankAdapter(rank=4, dropout=0.3),
            LowRankAdapter(kind="dora", rank=3, targets=EVERYWHERE, dropout=0.2),
        ],
        [2, 0, 2],
    ),
    "words": ([LowRankAdapter(text_encoders=True), LowRankAdapter(blocks=("mid_block",))], [1, 1]),
}


@pytest.fixture(scope="module")
def emoji() -> Model:
    return load_model(EmojiModel(), device="cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def found(model: Model, adapters: list[LowRankAdapter], counts: list[int]) -> list[torch.Tensor]:
    """The prediction of a pack whose adapters act, and the gradients of all it trains."""
    fresh = [Fresh(adapter=adapter, seed=seed) for seed, adapter in enumerate(adapters)]
    with model.attach(fresh) as trainable:
        for member in trainable.members:
            state = member.state_dict()
            generator = seeded(1)
            for name, tensor in state.items():
                state[name] = tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            member.load_state_dict(state)
        rows = sum(counts)
        predicted = trainable.predict(
            torch.randn(rows, 8, 8, 8, generator=seeded(0)),
            torch.arange(rows) * 30 + 100,
            ["wrong"] * rows,
            torch.full((rows, 6), 64.0),
            counts=counts,
            dropout_seeds=list(range(len(counts))),
        )
        predicted.square().sum().backward()
        parameters = [p for m in trainable.members for group in m.groups() for p in group.parameters]
        return [predicted.detach(), *(p.grad.clone() for p in parameters if p.grad is not None)]


@pytest.mark.parametrize("pack", PACKS)
def test_by_hand_it_is_what_autograd_gives(emoji: Model, pack: str, monkeypatch: pytest.MonkeyPatch):
    by_hand = found(emoji, *PACKS[pack])
    for room in (transformer, residual):
        monkeypatch.setattr(room, "is_by_hand", lambda _block: False)
    for ours, theirs in zip(by_hand, found(emoji, *PACKS[pack]), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_a_run_alone_is_trained_by_hand_throughout(emoji: Model, monkeypatch: pytest.MonkeyPatch):
    """Else the last test compares autograd with itself. Adapters on convolutions leave those to autograd."""
    called = {"blocks": 0, "residuals": 0}

    def counting(name: str, original: Any) -> Any:
        def call(*given: Any) -> Any:
            called[name] += 1
            return original(*given)

        return call

    monkeypatch.setattr(transformer, "by_hand", counting("blocks", transformer.by_hand))
    monkeypatch.setattr(residual, "by_hand", counting("residuals", residual.by_hand))
    found(emoji, *PACKS["one"])
    assert called == {"blocks": 7, "residuals": 8}
    found(emoji, [LowRankAdapter(rank=2, targets=EVERYWHERE)], [1])
    assert called == {"blocks": 14, "residuals": 8}


@pytest.mark.parametrize("training", [False, True])
def test_the_unet_is_diffusers_own(emoji: Model, training: bool):
    """Without gradients nothing is rounded otherwise; with them by no more than 1e-5."""
    from harness.models.loading import load_emoji

    stock = load_emoji(EmojiModel()).base.unet
    lean = copy.deepcopy(stock)
    make_lean(lean)
    kinds = {type(module) for module in lean.modules()}
    assert kinds >= {LeanResnet, LeanAttention, LeanBlock, LeanTransformer}
    sample = torch.randn(2, 8, 8, 8, generator=seeded(0), requires_grad=training)
    words = torch.randn(2, 77, 224, generator=seeded(1))
    added = {"text_embeds": torch.randn(2, 128, generator=seeded(2)), "time_ids": torch.full((2, 6), 64.0)}
    with torch.set_grad_enabled(training):
        expected, plain = (u(sample, 500, words, added_cond_kwargs=added).sample for u in (stock, lean))
    if not training:
        assert torch.equal(expected, plain)
        return
    make_invariant(lean)
    ours = lean(sample, 500, words, added_cond_kwargs=added).sample
    wanted, got = (torch.autograd.grad(out.square().sum(), sample)[0] for out in (expected, ours))
    for one, other in ((expected, plain), (expected, ours), (wanted, got)):
        assert (one - other).norm() <= 1e-5 * one.norm()


def test_something_else_on_a_layer_is_left_to_autograd(emoji: Model):
    unet: Any = emoji._base.unet  # type: ignore[attr-defined]
    block, resnet = unet.mid_block.attentions[0].transformer_blocks[0], unet.mid_block.resnets[0]
    assert transformer.is_by_hand(block) and residual.is_by_hand(resnet)
    hooks = [layer.register_forward_hook(lambda *_: None) for layer in (block.attn1.to_q, resnet.conv1)]
    assert not transformer.is_by_hand(block) and not residual.is_by_hand(resnet)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        assert not transformer.is_by_hand(block) and not residual.is_by_hand(resnet)
