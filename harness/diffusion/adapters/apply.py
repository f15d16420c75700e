"""Row-wise adapters: every row of a batch names those that act on it; the frozen base runs once for all.

The base's weights are never touched, so taking the adapters away restores it exactly. Several adapters on
one row each add their own difference from the base, so their order means nothing: A beside A and B beside B
they are one adapter of their ranks' sum. Autograd works through it. See `grouped.py` for the products.

As in PEFT a DoRA's magnitude does not fade with the scale.

Shape legend: B rows of the batch, G groups of rows on which the same acts, I in, O out, R rank, k kernel.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from harness.diffusion.adapters.adapter import AdapterLayer, LowRank, LowRankLayer, RotatedLayer
from harness.diffusion.adapters.grouped import RANKS, Span, add_low_rank, spans
from harness.errors import ModelError

Acting = Sequence[tuple[LowRank, float]]  # the adapters that act on one row, each with its scale


@contextmanager
def acting(unet: torch.nn.Module, rows: Sequence[Acting]) -> Iterator[None]:
    """While the block runs, row i of every batch that the UNet sees is acted on by the adapters of `rows[i]`.

    Raises ModelError where an adapter was made for another UNet.
    """
    groups: dict[tuple[tuple[int, float], ...], Acting] = {}  # each distinct set of adapters and scales
    keys = []
    for adapters in rows:
        adapters = [(part, scale) for part, scale in adapters if scale != 0]
        keys.append(tuple((id(part), scale) for part, scale in adapters))
        groups.setdefault(keys[-1], adapters)
    order = {key: place for place, key in enumerate(groups)}
    with _hooked(dict(unet.named_modules()), list(groups.values()), [order[key] for key in keys]):
        yield


@contextmanager
def acting_on_all(modules: Mapping[str, torch.nn.Module], adapters: Acting) -> Iterator[None]:
    """While the block runs, the adapters act on every row that the modules see, however many there are.

    Raises ModelError where an adapter was made for another model.
    """
    with _hooked(modules, [[(part, scale) for part, scale in adapters if scale != 0]], None):
        yield


@contextmanager
def _hooked(
    modules: Mapping[str, torch.nn.Module], groups: Sequence[Acting], group_of_row: Sequence[int] | None
) -> Iterator[None]:
    """Hooks on the modules that the adapters name; without rows the one group's act on all."""
    names = dict.fromkeys(name for adapters in groups for part, _ in adapters for name in part)
    hooks = []
    try:
        for name in names:
            module = modules.get(name)
            own = [
                [(_fitted(name, part[name], module), scale) for part, scale in group if name in part]
                for group in groups
            ]
            hooks.append(modules[name].register_forward_hook(_hook(modules[name], own, group_of_row)))
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _hook(
    module: torch.nn.Module,
    groups: Sequence[Sequence[tuple[LowRankLayer, float]]],
    group_of_row: Sequence[int] | None,
) -> "_Hook":
    """The layer's hook. Groups of which nothing acts here have no rows in it."""
    acts = [group for group in groups if group]
    merged = [_merged(module, group) for group in acts]
    rank = max(len(down) for down, _, _ in merged)
    rank += -rank % RANKS
    more_GO = None
    if any(more_O is not None for _, _, more_O in merged):
        more_GO = torch.stack(
            [merged[0][1].new_zeros(up.shape[1]) if m is None else m for _, up, m in merged]
        )
    if group_of_row is None:
        rows, batch = None, None
    else:
        place = iter(range(len(acts)))
        places = [next(place) if group else None for group in groups]
        rows, batch = spans([places[group] for group in group_of_row]), len(group_of_row)
    return _Hook(
        rows=rows,
        batch=batch,
        down=torch.stack([_widened(down, rank) for down, _, _ in merged]),
        up_GRO=torch.stack([_widened(up_RO, rank) for _, up_RO, _ in merged]),
        more_GO=more_GO,
    )


def _merged(
    module: torch.nn.Module, adapters: Sequence[tuple[LowRankLayer, float]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A group's adapters as one: A [R, …], B with scales and gains [R, O], and what DoRA adds of the base."""
    downs, ups, more_O = [], [], None
    for layer, scale in adapters:
        up_RO = layer.up.flatten(1).transpose(0, 1) * (scale * layer.scale)
        if layer.magnitude_O is not None:
            gain_O = _gain(module, layer, layer.magnitude_O, scale * layer.scale)
            up_RO = up_RO * gain_O.to(up_RO.dtype)
            more_O = gain_O - 1 if more_O is None else more_O + gain_O - 1
        downs.append(layer.down)
        ups.append(up_RO)
    return torch.cat(downs), torch.cat(ups), more_O


def _widened(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    return F.pad(matrix, (*[0, 0] * (matrix.ndim - 1), 0, rank - len(matrix)))


def _gain(
    module: torch.nn.Module, layer: LowRankLayer, magnitude_O: torch.Tensor, scale: float
) -> torch.Tensor:
    """DoRA's m / ‖W + scale · B A‖."""
    assert isinstance(module.weight, torch.Tensor)
    weight_OX = module.weight.detach().flatten(1).float()
    added_OX = layer.up.flatten(1).float() @ layer.down.flatten(1).float()
    # The norm is a constant to the gradient, as the paper's section 4.3 has it.
    norm_O = torch.linalg.norm(weight_OX + scale * added_OX.detach(), dim=1)
    return magnitude_O.float() / norm_O


def _as_product(layer: RotatedLayer, module: torch.nn.Module | None) -> LowRankLayer | None:
    """W R − W as a product with W itself as one of its factors; None where W has not R's size."""
    turn_SS = torch.block_diag(*layer.turn_kbb)
    size = len(turn_SS)
    match module, layer.side:
        case torch.nn.Linear(in_features=inputs), "inputs" if inputs == size:
            weight_OI = module.weight.detach().to(turn_SS)
            return LowRankLayer(down=turn_SS.T, up=weight_OI, scale=1.0)
        case torch.nn.Linear(out_features=outputs), "outputs" if outputs == size:
            return LowRankLayer(down=module.weight.detach().to(turn_SS), up=turn_SS.T, scale=1.0)
        case torch.nn.Conv2d(out_channels=outputs), "outputs" if outputs == size:
            up = turn_SS.T[:, :, None, None]
            return LowRankLayer(down=module.weight.detach().to(turn_SS), up=up, scale=1.0)
    return None


def _fitted(name: str, layer: AdapterLayer, module: torch.nn.Module | None) -> LowRankLayer:
    """The layer as the module takes it: 1 × 1 kernels on a linear layer are flat, flat kernels are not.

    Raises ModelError where it was made for another module.
    """
    if isinstance(layer, RotatedLayer):
        product, turned = _as_product(layer, module), layer.turn_kbb.shape
        if product is None:
            raise ModelError(
                f"an adapter turns the {layer.side} of {name} in {turned[0]} blocks of {turned[1]}, which "
                "this model has not; it was trained on another model"
            )
        layer = product
    match module:
        case torch.nn.Linear() if layer.down.ndim == 4 and layer.down.shape[2:] == (1, 1):
            layer = replace(layer, down=layer.down.flatten(1), up=layer.up.flatten(1))
        case torch.nn.Conv2d() if layer.down.ndim == 2 and layer.down[0].numel() == module.weight[0].numel():
            down = layer.down.reshape(-1, *module.weight.shape[1:])
            layer = replace(layer, down=down, up=layer.up[:, :, None, None])
    match module:
        case torch.nn.Linear():
            fits = layer.down.shape[1:] == module.weight.shape[1:]
            fits &= layer.up.shape == (module.weight.shape[0], layer.down.shape[0])
        case torch.nn.Conv2d(groups=1):
            fits = layer.down.shape[1:] == module.weight.shape[1:]
            fits &= layer.up.shape == (module.weight.shape[0], layer.down.shape[0], 1, 1)
        case _:
            fits = False
    if not fits:
        raise ModelError(
            f"an adapter acts on {name} as a layer of {tuple(layer.down.shape)} and {tuple(layer.up.shape)}, "
            "which this model has not; it was trained on another model"
        )
    return layer


@dataclass(frozen=True, kw_only=True, eq=False)
class _Hook:
    """A forward hook that adds the adapters' part to the rows they act on."""

    rows: Sequence[Span] | None
    batch: int | None
    down: torch.Tensor
    up_GRO: torch.Tensor
    more_GO: torch.Tensor | None

    def __call__(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], base: torch.Tensor
    ) -> torch.Tensor:
        x = inputs[0]
        assert self.batch in (None, x.shape[0]), (
            f"{x.shape[0]} rows in the batch, {self.batch} were described"
        )
        return add_low_rank(
            module, x, base, self.rows, down=self.down, up_GRO=self.up_GRO, more_GO=self.more_GO
        )
