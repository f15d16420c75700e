"""The transformer block of SDXL's UNet, forwards and backwards by hand.

Autograd keeps a node for each of some hundred operations of a block, most of which only look at a tensor in
another shape. On small pictures they take as long as the mathematics.

Shape legend: B rows of the batch, T tokens, S tokens attended to, C channels, H heads, D channels of a head.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from harness.models.adapted import Adapted, Saved
from harness.models.invariant import InvariantLinear, in_training
from harness.models.pack_layers import PackedLayer

aten = torch.ops.aten
OF_WORDS = (5, 6)  # of `layers_of`, what the words are projected by
PROJECTIONS = ("to_q", "to_k", "to_v")
Gradients = list[Tensor | None]


class TransformerBlock(torch.autograd.Function):
    """x + attention to itself, + attention to the words, + feed-forward, each after its LayerNorm."""

    @staticmethod
    def forward(
        ctx: Any, block: Any, layers: Sequence[Adapted], x_BTC: Tensor, words_BSC: Tensor, *_factors: Tensor
    ) -> Tensor:
        """The ten layers are in the order of `layers_of`; `_factors` are their tensors, for autograd."""
        normed, of_norm1 = _norm(block.norm1, x_BTC)
        attended, of_self = _attention(block.attn1.heads, layers[:4], normed, normed)
        first = attended.add_(x_BTC)
        normed, of_norm2 = _norm(block.norm2, first)
        attended, of_cross = _attention(block.attn2.heads, layers[4:8], normed, words_BSC)
        second = attended.add_(first)
        normed, of_norm3 = _norm(block.norm3, second)
        fed, of_feed = _feed_forward(layers[8:], normed)
        saved = (of_norm1, of_self, of_norm2, of_cross, of_norm3, of_feed)
        ctx.block, ctx.layers, ctx.sizes = block, layers, [len(part) for part in saved]
        ctx.save_for_backward(*(tensor for part in saved for tensor in part))
        return fed.add_(second)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """None for what is not asked for."""
        block, layers = ctx.block, ctx.layers
        _, _, to_input, to_words = ctx.needs_input_grad[:4]
        tensors = iter(ctx.saved_tensors)
        saved = [tuple(islice(tensors, size)) for size in ctx.sizes]
        of_norm1, of_self, of_norm2, of_cross, of_norm3, of_feed = saved
        (gradient,) = gradients
        back, of_layers3 = _feed_forward_back(layers[8:], gradient, of_feed)
        gradient = gradient + _norm_back(block.norm3, back, of_norm3)
        back, words, of_layers2 = _attention_back(layers[4:8], gradient, of_cross, to_source=to_words)
        gradient = gradient + _norm_back(block.norm2, back, of_norm2)
        back, source, of_layers1 = _attention_back(layers[:4], gradient, of_self, to_source=to_input)
        if source is not None:
            gradient = gradient + _norm_back(block.norm1, back + source, of_norm1)
        return None, None, gradient if to_input else None, words, *of_layers1, *of_layers2, *of_layers3


def is_by_hand(block: Any) -> bool:
    """Where all layers are ours and nothing but adapters in training acts on them."""
    return all(
        type(module) is InvariantLinear
        and in_training(module)
        and all(isinstance(hook, PackedLayer) for hook in module._forward_hooks.values())
        for module in layers_of(block)
    )


def by_hand(block: Any, x_BTC: Tensor, words_BSC: Tensor) -> Tensor:
    """The block's output; its adapters and inputs have gradients."""
    layers = []
    for place, module in enumerate(layers_of(block)):
        of = words_BSC if place in OF_WORDS else x_BTC
        hook = next(iter(module._forward_hooks.values()), None)
        factors = None if hook is None else hook.factors(module, (*of.shape[:2], module.in_features))
        layers.append(Adapted(module=module, factors=factors))
    factors = [t for layer in layers if layer.factors is not None for t in layer.factors.tensors]
    out: Tensor = TransformerBlock.apply(block, layers, x_BTC, words_BSC.contiguous(), *factors)
    return out


def layers_of(block: Any) -> list[Any]:
    """The linear layers of a block: of both attentions query, key, value and out, then the feed-forward's."""
    attentions = [
        (*(getattr(a, name) for name in PROJECTIONS), a.to_out[0]) for a in (block.attn1, block.attn2)
    ]
    return [*attentions[0], *attentions[1], block.ff.net[0].proj, block.ff.net[2]]


def _norm(norm: torch.nn.LayerNorm, x_BTC: Tensor) -> tuple[Tensor, Saved]:
    out, mean, rstd = torch.native_layer_norm(x_BTC, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return out, (x_BTC, mean, rstd)


def _norm_back(norm: torch.nn.LayerNorm, gradient: Tensor, saved: Saved) -> Tensor:
    x_BTC, mean, rstd = saved
    back: Tensor = aten.native_layer_norm_backward.default(
        gradient, x_BTC, norm.normalized_shape, mean, rstd, norm.weight, norm.bias, [True, False, False]
    )[0]
    return back


def _attention(
    heads: int, layers: Sequence[Adapted], x_BTC: Tensor, source_BSC: Tensor
) -> tuple[Tensor, Saved]:
    """Of x to the source, and what the way back wants."""
    projected, lows = [], []
    for layer, of in zip(layers[:3], (x_BTC, source_BSC, source_BSC), strict=True):
        out, low = layer.forward(of)
        projected.append(out.view(len(out), -1, heads, out.shape[-1] // heads).transpose(1, 2))
        lows.append(low)
    out_BHTD, sums = aten._scaled_dot_product_flash_attention_for_cpu.default(*projected)
    joined_BTC = out_BHTD.transpose(1, 2).reshape(x_BTC.shape)
    result, low = layers[3].forward(joined_BTC)
    lows.append(low)
    return result, (
        x_BTC,
        source_BSC,
        *projected,
        out_BHTD,
        sums,
        joined_BTC,
        *(t for low in lows for t in low),
    )


def _attention_back(
    layers: Sequence[Adapted], gradient_BTC: Tensor, saved: Saved, *, to_source: bool
) -> tuple[Tensor, Tensor | None, Gradients]:
    """The gradients of x, of the source and of the factors."""
    x_BTC, source_BSC, query, key, value, out_BHTD, sums, joined_BTC = saved[:8]
    rest = iter(saved[8:])
    lows = [tuple(islice(rest, layer.kept)) for layer in layers]
    joined_back, of_out = layers[3].backward(gradient_BTC, joined_BTC, lows[3])
    assert joined_back is not None
    spread = joined_back.view(out_BHTD.transpose(1, 2).shape).transpose(1, 2)
    backs = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        spread, query, key, value, out_BHTD, sums, 0.0, False
    )
    found = []
    for layer, of, back, low, asked in zip(
        layers, (x_BTC, source_BSC, source_BSC), backs, lows, (True, to_source, to_source), strict=False
    ):
        found.append(
            layer.backward(
                back.transpose(1, 2).reshape(of.shape[0], of.shape[1], -1), of, low, to_input=asked
            )
        )
    (to_x, of_query), (from_key, of_key), (from_value, of_value) = found
    assert to_x is not None
    source = None if from_key is None or from_value is None else from_value + from_key
    return to_x, source, [*of_query, *of_key, *of_value, *of_out]


def _feed_forward(layers: Sequence[Adapted], x_BTC: Tensor) -> tuple[Tensor, Saved]:
    wide, low = layers[0].forward(x_BTC)
    passed, gate = wide.chunk(2, dim=-1)
    opened = torch.nn.functional.gelu(gate)
    hidden = passed * opened
    out, low_out = layers[1].forward(hidden)
    return out, (x_BTC, wide, opened, hidden, *low, *low_out)


def _feed_forward_back(layers: Sequence[Adapted], gradient: Tensor, saved: Saved) -> tuple[Tensor, Gradients]:
    x_BTC, wide, opened, hidden = saved[:4]
    low, low_out = saved[4 : 4 + layers[0].kept], saved[4 + layers[0].kept :]
    back, of_out = layers[1].backward(gradient, hidden, low_out)
    assert back is not None
    passed, gate = wide.chunk(2, dim=-1)
    both = torch.cat([back * opened, aten.gelu_backward.default(back * passed, gate)], dim=-1)
    to_x, of_wide = layers[0].backward(both, x_BTC, low)
    assert to_x is not None
    return to_x, [*of_wide, *of_out]
