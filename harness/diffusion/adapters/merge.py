"""Several adapters merged into one, by PEFT's methods."""

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from peft.utils.merge_utils import dare_linear, task_arithmetic, ties

from harness.config.schema.evaluation import MergeConfig
from harness.config.weights.names import PARTS
from harness.diffusion.adapters.adapter import Adapter, LowRank, LowRankLayer
from harness.errors import ModelError


def merged(adapters: Sequence[tuple[Adapter, float]], merge: MergeConfig) -> Adapter:
    """One adapter in place of several, each weighted by its scale; to act at scale 1.

    As PEFT's `add_weighted_adapter`: the A matrices are combined and the B matrices are combined, each times
    √|weight · scale|, the sign going to A. So `linear` is not the sum of the adapters, which merging them by
    rank would be; arms that name several adapters without `merge` have that. `ties` is Yadav et al. 2023 and
    `dare` Yu et al. 2024 with a linear sum, its numbers drawn on the CPU from `merge.seed`.

    Raises ModelError unless all are LoRA of one rank on the same layers, and nothing else.
    """
    assert adapters, "nothing to merge"
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a density of 1 prunes nothing
        if merge.seed is not None:
            torch.default_generator.manual_seed(merge.seed)
        unet, first, second = (_merged_part(part, adapters, merge) for part in PARTS)
    return Adapter(unet=unet, text_encoder=first, text_encoder_2=second)


def _merged_part(
    part: str, adapters: Sequence[tuple[Adapter, float]], merge: MergeConfig
) -> dict[str, LowRankLayer]:
    if any(adapter.embedding is not None for adapter, _ in adapters):
        raise ModelError("textual inversion cannot be merged; let it act beside the others, without merge")
    given: list[LowRank] = [getattr(adapter, part) for adapter, _ in adapters]
    parts = [
        {name: layer for name, layer in layers.items() if isinstance(layer, LowRankLayer)} for layers in given
    ]
    if any(len(own) < len(layers) for own, layers in zip(parts, given, strict=True)):
        raise ModelError("OFT cannot be merged with others; let it act beside them, without merge")
    _check_alike(part, parts)
    weights = [weight for _, weight in adapters]
    return {
        name: _merged_layer([layers[name] for layers in parts], weights, merge) for name in sorted(parts[0])
    }


def _check_alike(part: str, parts: Sequence[Mapping[str, LowRankLayer]]) -> None:
    first = parts[0]
    for other in parts[1:]:
        different = sorted(first.keys() ^ other.keys())
        if different:
            raise ModelError(
                f"merged adapters must act on the same layers, and only one acts on {part}.{different[0]}; "
                "give adapters of the same targets, or no merge"
            )
        for name, layer in other.items():
            if layer.down.shape != first[name].down.shape or layer.up.shape != first[name].up.shape:
                raise ModelError(
                    f"merged adapters must be of one rank and model, and at {part}.{name} they have "
                    f"{tuple(first[name].down.shape)} and {tuple(layer.down.shape)}; "
                    "give adapters of the same rank, or no merge"
                )
    for layers in parts:
        if any(layer.magnitude_O is not None for layer in layers.values()):
            raise ModelError("DoRA cannot be merged with others; let it act beside them, without merge")


def _merged_layer(
    layers: Sequence[LowRankLayer], weights: Sequence[float], merge: MergeConfig
) -> LowRankLayer:
    whole = [weight * layer.scale for weight, layer in zip(weights, layers, strict=True)]
    roots = torch.tensor([math.sqrt(abs(weight)) for weight in whole])
    signs = torch.tensor([1.0 if weight >= 0 else -1.0 for weight in whole])
    return LowRankLayer(
        down=_combined([layer.down for layer in layers], roots * signs, merge),
        up=_combined([layer.up for layer in layers], roots, merge),
        scale=1.0,
    )


def _combined(tensors: Sequence[torch.Tensor], weights: torch.Tensor, merge: MergeConfig) -> torch.Tensor:
    on_cpu = [tensor.detach().to("cpu", torch.float32) for tensor in tensors]
    match merge.method:
        case "linear":
            combined = task_arithmetic(on_cpu, weights)
        case "ties":
            assert merge.density is not None
            combined = ties(on_cpu, weights, merge.density)
        case "dare":
            assert merge.density is not None
            combined = dare_linear(on_cpu, weights, merge.density)
    return combined.to(tensors[0])
