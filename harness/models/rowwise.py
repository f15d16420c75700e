"""Row-wise adapters: every row of a batch names the LoRAs that act on it; the frozen base runs once for all.

A LoRA adds scale · (alpha / rank) · B A x to the output of a linear layer (Hu et al. 2021). Here it is added
to some rows of the batch only, as S-LoRA (Sheng et al. 2023) and Punica (Chen et al. 2023) do for language
models. The base's weights are never touched, so taking the adapters away restores it exactly. Autograd works
through it.

Shape legend: B rows of the UNet's batch, n rows an adapter acts on, T tokens, I in, O out, R rank.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional as F

from harness.errors import ModelError

LORA_FILE = "pytorch_lora_weights.safetensors"
PREFIX = "unet."
METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps rank and alpha, as JSON with prefixed names
UNSUPPORTED = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraLayer:
    """The two matrices of one linear layer."""

    down_RI: torch.Tensor
    up_OR: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """An adapter in memory: its layers by the name of the UNet's module, and alpha / rank."""

    layers: Mapping[str, LoraLayer]
    scale: float


Acting = Sequence[tuple[Lora, float]]  # the adapters that act on one row, each with its scale


def read_lora(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Lora:
    """Read an adapter as `save_adapter` writes it. Without a recorded alpha, alpha is the rank.

    Raises ModelError where the file is damaged or holds anything but LoRA on linear layers of the UNet.
    """
    path = folder / LORA_FILE
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {key: file.get_tensor(key).to(device, dtype) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"adapter {path} cannot be read ({error}); delete its folder and run again"
        ) from error
    layers = _layers(path, weights)
    rank = next(iter(layers.values())).down_RI.shape[0]
    return Lora(layers=layers, scale=_alpha(path, header, rank) / rank)


def _layers(path: Path, weights: dict[str, torch.Tensor]) -> dict[str, LoraLayer]:
    downs, ups = {}, {}
    for key, weight in weights.items():
        name = key.removeprefix(PREFIX)
        if not key.startswith(PREFIX) or weight.ndim != 2:
            raise ModelError(
                f"adapter {path} has {key}; only LoRA on linear layers of the UNet can act row-wise"
            )
        if name.endswith(".lora_A.weight"):
            downs[name.removesuffix(".lora_A.weight")] = weight
        elif name.endswith(".lora_B.weight"):
            ups[name.removesuffix(".lora_B.weight")] = weight
        else:
            raise ModelError(
                f"adapter {path} has {key}; allowed: {PREFIX}<module>.lora_A.weight and lora_B.weight"
            )
    if not downs or downs.keys() != ups.keys() or len({down.shape[0] for down in downs.values()}) != 1:
        raise ModelError(f"adapter {path} must have lora_A and lora_B of one rank for every module it names")
    return {name: LoraLayer(down_RI=downs[name], up_OR=ups[name]) for name in sorted(downs)}


def _alpha(path: Path, header: dict[str, str], rank: int) -> float:
    if METADATA_KEY not in header:
        return float(rank)
    config = json.loads(header[METADATA_KEY])
    for name in UNSUPPORTED:
        if PREFIX + name in config and config[PREFIX + name]:
            raise ModelError(f"adapter {path} uses {name}, which row-wise adapters do not know")
    return float(config[PREFIX + "lora_alpha"])


@contextmanager
def acting(unet: torch.nn.Module, rows: Sequence[Acting]) -> Iterator[None]:
    """While the block runs, row i of every batch that the UNet sees is acted on by the adapters of `rows[i]`.

    Raises ModelError where an adapter was made for another UNet.
    """
    hooks = []
    try:
        for name, groups in _groups_by_module(unet, rows).items():
            hook = _Hook(groups, batch=len(rows))
            hooks.append(unet.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for handle in hooks:
            handle.remove()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """One adapter's layer for one module, the rows it acts on and its whole scale on each."""

    layer: LoraLayer
    rows_n: torch.Tensor
    scales_n11: torch.Tensor


def _groups_by_module(unet: torch.nn.Module, rows: Sequence[Acting]) -> dict[str, list[_Group]]:
    places: dict[int, list[tuple[int, float]]] = {}  # one entry per distinct adapter
    loras: dict[int, Lora] = {}
    for row, adapters in enumerate(rows):
        for lora, scale in adapters:
            if scale != 0:
                loras[id(lora)] = lora
                places.setdefault(id(lora), []).append((row, scale))
    modules = dict(unet.named_modules())
    groups: dict[str, list[_Group]] = {}
    for key, lora in loras.items():
        anchor = next(iter(lora.layers.values())).down_RI
        rows_n = torch.tensor([row for row, _ in places[key]], device=anchor.device)
        scales_n = torch.tensor([scale * lora.scale for _, scale in places[key]], device=anchor.device)
        for name, layer in lora.layers.items():
            _check_fits(name, layer, modules.get(name))
            group = _Group(layer=layer, rows_n=rows_n, scales_n11=scales_n.to(anchor.dtype)[:, None, None])
            groups.setdefault(name, []).append(group)
    return groups


def _check_fits(name: str, layer: LoraLayer, module: torch.nn.Module | None) -> None:
    shape = (layer.up_OR.shape[0], layer.down_RI.shape[1])
    if not isinstance(module, torch.nn.Linear) or tuple(module.weight.shape) != shape:
        raise ModelError(
            f"an adapter acts on {name} as a linear layer of shape {shape}, which this model has not; "
            "it was trained on another model"
        )


class _Hook:
    """A forward hook that adds the adapters' part to the rows they act on."""

    def __init__(self, groups: Sequence[_Group], *, batch: int) -> None:
        self._groups = groups
        self._batch = batch

    def __call__(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], out_BTO: torch.Tensor
    ) -> torch.Tensor:
        x_BTI = inputs[0]
        assert x_BTI.shape[0] == self._batch, (
            f"{x_BTI.shape[0]} rows in the batch, {self._batch} were described"
        )
        for group in self._groups:
            down, up = group.layer.down_RI, group.layer.up_OR
            x_nTI = x_BTI.index_select(0, group.rows_n).to(down.dtype)
            added_nTO = F.linear(F.linear(x_nTI, down), up) * group.scales_n11
            out_BTO = out_BTO.index_add(0, group.rows_n, added_nTO.to(out_BTO.dtype))
        return out_BTO
