"""Adapters with visible effect, written by the harness itself, for the tests of models and generation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.config.schema.adapter import AdapterConfig, LowRankAdapter
from harness.diffusion.adapters.adapter import LowRank, LowRankLayer, ParameterGroup
from harness.diffusion.models.model import Fresh

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model, Trainable

SPREAD = 0.1


class Alone:
    """A trainable of one member, and that member."""

    def __init__(self, trainable: "Trainable") -> None:
        (self.member,) = trainable.members
        self.predict = trainable.predict

    def groups(self) -> list[ParameterGroup]:
        return self.member.groups()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.member.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.member.load_state_dict(state)


def products(part: LowRank) -> dict[str, LowRankLayer]:
    """The layers of an adapter's part, none of which turns weights."""
    found = {name: layer for name, layer in part.items() if isinstance(layer, LowRankLayer)}
    assert len(found) == len(part)
    return found


def base_of(model: "Model") -> Any:
    """The pipeline of its base."""
    return model._base  # type: ignore[attr-defined]


@contextmanager
def attached(model: "Model", adapter: AdapterConfig, seed: int, **options: Any) -> Iterator[Alone]:
    """The model with one fresh adapter to train."""
    with model.attach([Fresh(adapter=adapter, seed=seed)], **options) as trainable:
        yield Alone(trainable)


def random_adapter(
    model: "Model",
    folder: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 8.0,
    adapter: AdapterConfig | None = None,
) -> Path:
    """Save an adapter whose numbers are all random, as if trained; returns `folder`."""
    adapter = adapter or LowRankAdapter(rank=rank, alpha=alpha)
    generator = torch.Generator().manual_seed(seed)
    with attached(model, adapter, seed) as trainable:
        state = {
            key: _trained(key, tensor, generator) for key, tensor in sorted(trainable.state_dict().items())
        }
    model.save_adapter(state, adapter, folder, {"made_by": "test"})
    return folder


def _trained(key: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(tensor.shape, generator=generator) * SPREAD
    if "magnitude" in key:
        return tensor * (1 + noise)
    if key in ("clip_l", "clip_g"):
        return tensor + 10 * noise * tensor.std()
    if key.endswith("_start"):
        return tensor
    # As strong on a convolution or a text encoder as it is on a projection of the UNet.
    return noise / (3 if tensor.ndim == 4 else 1)
