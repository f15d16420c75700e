"""Adapters with visible effect, written by the harness itself, for the tests of models and generation."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.spec.trial import LoraAdapter

if TYPE_CHECKING:
    from harness.models.model import Model


def random_adapter(model: "Model", folder: Path, *, seed: int, rank: int = 4, alpha: float = 8.0) -> Path:
    """Save an adapter whose two matrices are both random, as if trained; returns `folder`."""
    adapter = LoraAdapter(rank=rank, alpha=alpha)
    generator = torch.Generator().manual_seed(seed)
    with model.attach(adapter, seed) as trainable:
        state = {
            key: torch.randn(tensor.shape, generator=generator) * 0.1
            for key, tensor in trainable.state_dict().items()
        }
    model.save_adapter(state, adapter, folder, {"made_by": "test"})
    return folder
