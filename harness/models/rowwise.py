"""Row-wise adapters: every row of a batch names those that act on it; the frozen base runs once for all.

A LoRA adds scale · B A x to the output of a layer (Hu et al. 2021). Here it is added to some rows of the
batch only, as S-LoRA (Sheng et al. 2023) and Punica (Chen et al. 2023) do for language models. The base's
weights are never touched, so taking the adapters away restores it exactly. Autograd works through it.

With a magnitude m (DoRA, Liu et al. 2024) the layer is m / ‖W + scale · B A‖ · (W + scale · B A), its norm
taken over the inputs of each output. As in PEFT the magnitude does not fade with the scale. Several adapters
on one row each add their own difference from the base, so their order means nothing.

Shape legend: B rows of the batch, n rows an adapter acts on, I in, O out, R rank, k kernel.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from harness.errors import ModelError


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankLayer:
    """What an adapter does to one layer: A is `down`, B is `up`, `scale` is alpha / rank or the like.

    Linear: [R, I] and [O, R]. Convolution: [R, I, k, k] and [O, R, 1, 1].
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude_O: torch.Tensor | None = None


LowRank = Mapping[str, LowRankLayer]  # by the name of the module; empty for an adapter without a part here
Acting = Sequence[tuple[LowRank, float]]  # the adapters that act on one row, each with its scale


@contextmanager
def acting(unet: torch.nn.Module, rows: Sequence[Acting]) -> Iterator[None]:
    """While the block runs, row i of every batch that the UNet sees is acted on by the adapters of `rows[i]`.

    Raises ModelError where an adapter was made for another UNet.
    """
    places: dict[int, list[tuple[int, float]]] = {}  # one entry per distinct adapter
    parts: dict[int, LowRank] = {}
    for row, adapters in enumerate(rows):
        for part, scale in adapters:
            if scale != 0:
                parts[id(part)] = part
                places.setdefault(id(part), []).append((row, scale))
    with _hooked(unet, [(part, places[key]) for key, part in parts.items()], batch=len(rows)):
        yield


@contextmanager
def acting_on_all(module: torch.nn.Module, adapters: Acting) -> Iterator[None]:
    """While the block runs, the adapters act on every row that the module sees, however many there are.

    Raises ModelError where an adapter was made for another model.
    """
    with _hooked(module, [(part, [(0, scale)]) for part, scale in adapters if scale != 0], batch=None):
        yield


@contextmanager
def _hooked(
    root: torch.nn.Module, parts: Sequence[tuple[LowRank, Sequence[tuple[int, float]]]], *, batch: int | None
) -> Iterator[None]:
    """Hooks on the modules that the parts name; without `batch` each part's one place stands for all rows."""
    modules = dict(root.named_modules())
    groups: dict[str, list[_Group]] = {}
    for part, places in parts:
        for name, layer in part.items():
            module = _fitting(name, layer, modules.get(name))
            groups.setdefault(name, []).append(_group(module, layer, places, every_row=batch is None))
    hooks = []
    try:
        for name, of_module in groups.items():
            hooks.append(modules[name].register_forward_hook(_Hook(of_module, batch=batch)))
        yield
    finally:
        for handle in hooks:
            handle.remove()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """One adapter's layer for one module, the rows it acts on (null: all) and its whole scale on each."""

    layer: LowRankLayer
    rows_n: torch.Tensor | None
    scales_n: torch.Tensor
    gains_nO: torch.Tensor | None  # DoRA's m / ‖W + scale · B A‖


def _group(
    module: torch.nn.Module, layer: LowRankLayer, places: Sequence[tuple[int, float]], *, every_row: bool
) -> _Group:
    device, dtype = layer.down.device, layer.down.dtype
    scales = [scale * layer.scale for _, scale in places]
    gains_nO = None
    if layer.magnitude_O is not None:
        by_scale = {scale: _gain(module, layer, layer.magnitude_O, scale) for scale in set(scales)}
        gains_nO = torch.stack([by_scale[scale] for scale in scales])
    return _Group(
        layer=layer,
        rows_n=None if every_row else torch.tensor([row for row, _ in places], device=device),
        scales_n=torch.tensor(scales, device=device).to(dtype),
        gains_nO=gains_nO,
    )


def _gain(
    module: torch.nn.Module, layer: LowRankLayer, magnitude_O: torch.Tensor, scale: float
) -> torch.Tensor:
    assert isinstance(module.weight, torch.Tensor)
    weight_OX = module.weight.detach().flatten(1).float()
    added_OX = layer.up.flatten(1).float() @ layer.down.flatten(1).float()
    # The norm is a constant to the gradient, as the paper's section 4.3 has it.
    norm_O = torch.linalg.norm(weight_OX + scale * added_OX.detach(), dim=1)
    return magnitude_O.float() / norm_O


def _fitting(name: str, layer: LowRankLayer, module: torch.nn.Module | None) -> torch.nn.Module:
    match module:
        case torch.nn.Linear():
            fits = layer.down.shape[1:] == module.weight.shape[1:]
            fits &= layer.up.shape == (module.weight.shape[0], layer.down.shape[0])
        case torch.nn.Conv2d(groups=1):
            fits = layer.down.shape[1:] == module.weight.shape[1:]
            fits &= layer.up.shape == (module.weight.shape[0], layer.down.shape[0], 1, 1)
        case _:
            fits = False
    if module is None or not fits:
        raise ModelError(
            f"an adapter acts on {name} as a layer of {tuple(layer.down.shape)} and {tuple(layer.up.shape)}, "
            "which this model has not; it was trained on another model"
        )
    return module


class _Hook:
    """A forward hook that adds the adapters' part to the rows they act on."""

    def __init__(self, groups: Sequence[_Group], *, batch: int | None) -> None:
        self._groups = groups
        self._batch = batch

    def __call__(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], base: torch.Tensor
    ) -> torch.Tensor:
        x, out = inputs[0], base
        assert self._batch in (None, x.shape[0]), (
            f"{x.shape[0]} rows in the batch, {self._batch} were described"
        )
        for group in self._groups:
            if group.rows_n is None:
                out = out + _added(module, group, x, base)
            else:
                rows_n = group.rows_n
                added = _added(module, group, x.index_select(0, rows_n), base.index_select(0, rows_n))
                out = out.index_add(0, rows_n, added)
        return out


def _added(module: torch.nn.Module, group: _Group, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """What the adapter adds to the base's output of its rows, in the base's precision."""
    layer = group.layer
    x = x.to(layer.down.dtype)
    spread: tuple[int, ...]
    if isinstance(module, torch.nn.Conv2d):
        assert not isinstance(module.padding, str)
        low = F.conv2d(x, layer.down, None, module.stride, module.padding, module.dilation)
        added, spread = F.conv2d(low, layer.up), (-1, 1, 1)
    else:
        added = F.linear(F.linear(x, layer.down), layer.up)
        spread = (*[1] * (x.ndim - 2), -1)
    added = added * group.scales_n.view(-1, *[1] * (added.ndim - 1))
    if group.gains_nO is not None:
        gains = group.gains_nO.view(group.gains_nO.shape[0], *spread)
        if module.bias is not None:
            base = base - module.bias.view(spread)  # type: ignore[operator]
        added = (gains - 1) * base + gains * added
    return added.to(base.dtype)
