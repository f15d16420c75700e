"""Bytes are counted where they are known, and the full-size step saves where it must."""

from dataclasses import replace

import torch
from torch import nn

from benchmarks.ledger import Ledger, fused_attention
from benchmarks.memory import USUAL, Step, measure

SMALL = replace(USUAL, resolution=256)


def test_what_is_made_is_counted_once_and_forgotten() -> None:
    """Linear keeps its input's image under ReLU, ReLU its output; views and what is known cost nothing."""
    layer = nn.Linear(8, 16, device="meta")
    x = torch.empty(4, 8, device="meta")
    with Ledger(known=[*layer.parameters(), x]) as ledger:
        hidden = torch.relu(layer(x))
        assert ledger.live == 4 * 16 * 4, "relu's output; the layer's own is gone"
        assert hidden.t().shape == (16, 4) and ledger.live == 4 * 16 * 4
        del hidden
        assert ledger.live == 0
    assert ledger.peak == 2 * 4 * 16 * 4, "the layer's output and relu's"


def test_attention_keeps_no_scores() -> None:
    query = torch.empty(1, 2, 4096, 64, device="meta", requires_grad=True)
    with fused_attention(), Ledger(known=[query]) as ledger:
        nn.functional.scaled_dot_product_attention(query, query, query)
    assert ledger.peak < 2 * 4096 * 4096


def test_the_full_size_step_has_the_known_sizes_and_checkpointing_saves_most() -> None:
    """60 blocks 1280 wide and 10 of 640: 1 451 520 parameters for each rank."""
    plain, saving = measure(SMALL), measure(replace(SMALL, checkpointing=True))
    assert plain.adapter == saving.adapter == 1_451_520 * 8 * 4
    assert plain.base == saving.base == 2 * (2_567_463_684 + 123_060_480 + 694_659_840 + 83_653_863)
    assert saving.activations < 0.25 * plain.activations


def test_a_label_says_what_differs() -> None:
    assert Step(batch_size=2, checkpointing=True).label == "batch 2, checkpointing"
