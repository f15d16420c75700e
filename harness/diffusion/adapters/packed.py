"""The adapters of a pack: parameters in one block of memory, their start, and their layers.

Row k of the block holds all parameters of run k: first all A, then all B and magnitudes, the UNet's before
the text encoders'. So an optimizer has a few long tensors, and a layer has the matrices of all runs as one
batch. Lower ranks are padded with zeros, whose gradients are zero, so they stay zero.

Shape legend: K trials, P padded numbers of one trial, R the pack's highest rank, I in, O out, k kernel.
"""

import math
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from harness.config.schema.adapter import LowRankAdapter
from harness.config.weights.names import TEXT_BODY
from harness.diffusion.adapters.adapter import ParameterGroup
from harness.diffusion.adapters.grouped import RANKS, Span, add_low_rank
from harness.diffusion.adapters.init import fresh_state, text_body, text_targets, unet_targets
from harness.diffusion.adapters.textual_inversion import ENCODERS


@dataclass(kw_only=True, eq=False)
class Pass:
    """What the layers look up in each forward pass."""

    rows: Sequence[Span] | None = None  # null: all are the only trial's
    trials: Sequence[int] = ()  # the trial of each row, neighbours together
    only: int | None = None  # a text encoder's rows are all of one trial
    dropout_seeds: Sequence[int] = ()  # one per trial


class PackedLayer(torch.nn.Module):
    """Stands in the base for one of its layers while adapters are attached, as PEFT's layers do.

    Not a forward hook: torch.compile knows a block by the layers in it, and takes it that hooks never change.
    The adapters' tensors are no parameters of it: the model's dtype is that of the base.
    """

    def __init__(
        self,
        base: torch.nn.Module,
        *,
        current: Pass,
        adapters: Sequence[LowRankAdapter],
        name: str,
        down: Tensor,
        up_KRO: Tensor,
        magnitude_KO: Tensor | None,
        is_dora_K: Tensor,
    ) -> None:
        """`adapters`: of the K trials. `down`: A [K, R, I], of convolutions [K, R, I, k, k]; `up_KRO`: B.

        `magnitude_KO` is null where no trial is DoRA, else others' rows mean nothing.
        """
        super().__init__()
        self.base = base
        self._current = current
        self._tensors = down, up_KRO, magnitude_KO  # in a tuple, which PyTorch does not look into
        self._is_dora_K = is_dora_K  # those whose adapter has a magnitude here
        scales = [adapter.scale for adapter in adapters]
        self._scale_K = None if set(scales) == {1.0} else torch.tensor(scales, device=down.device)
        # Of the layer by its name: its number would depend on what the other trials' adapters act on.
        self._dropout = Dropout(current, [adapter.dropout for adapter in adapters], zlib.crc32(name.encode()))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives with the adapters' part."""
        base, rows, only = self.base(x), self._current.rows, self._current.only
        down, up_KRO, more_KO = self._factors()
        if only is not None:
            down, up_KRO, rows = down[only : only + 1], up_KRO[only : only + 1], None
            more_KO = None if more_KO is None else more_KO[only : only + 1]
        x = self._dropout(x)
        return add_low_rank(self.base, x, base, rows, down=down, up_GRO=up_KRO, more_GO=more_KO)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """A, B with scale and gain, and what DoRA adds of the base."""
        down, up_KRO, magnitude_KO = self._tensors
        if self._scale_K is not None:
            up_KRO = up_KRO * self._scale_K[:, None, None]
        if magnitude_KO is None:
            return down, up_KRO, None
        gain_KO = self._gain(down, up_KRO, magnitude_KO)
        return down, up_KRO * gain_KO[:, None], gain_KO - 1

    def _gain(self, down: Tensor, up_KRO: Tensor, magnitude_KO: Tensor) -> Tensor:
        """DoRA's m / ‖W + scale · B A‖, and 1 for other adapters.

        The norm is a constant to the gradient, as the paper's section 4.3 has it.
        """
        with torch.no_grad():
            weight_OX = self.base.weight.flatten(1).float()  # type: ignore[operator]
            whole_KOX = weight_OX + torch.bmm(up_KRO.transpose(1, 2), down.flatten(2))
            norm_KO = torch.linalg.vector_norm(whole_KOX, dim=2)
        return torch.where(self._is_dora_K[:, None], magnitude_KO / norm_KO, 1.0)


class Dropout:
    """Dropout of the adapters' input where gradients are kept. Computed again, its mask is the same."""

    def __init__(self, current: Pass, shares: Sequence[float], layer: int) -> None:
        self._current, self._shares, self._layer = current, shares, layer
        self._acts = any(shares)

    def __call__(self, x: Tensor) -> Tensor:
        """x, each trial's rows with its own share dropped."""
        if not self._acts or not torch.is_grad_enabled():
            return x
        only = self._current.only
        trials = list(self._current.trials if only is None else [only] * len(x))
        kept = torch.ones_like(x)
        for trial in dict.fromkeys(trials):
            if share := self._shares[trial]:
                first, count = trials.index(trial), trials.count(trial)
                seed = self._current.dropout_seeds[trial] ^ self._layer
                generator = torch.Generator(x.device).manual_seed(seed % 2**63)
                drawn = torch.rand((count, *x.shape[1:]), generator=generator, device=x.device)
                kept[first : first + count] = (drawn >= share) / (1 - share)
        return x * kept


Part = Literal["unet", "text_encoders"]
Side = Literal["down", "up"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """One tensor of the adapters' files, and where a row of the block has it: `start` and what follows."""

    key: str  # as unet.mid_block.….to_q.lora_A.weight
    part: Part
    kind: Literal["A", "B", "magnitude"]
    start: int
    shape: tuple[int, ...]  # in the block, padded: A [R, I] or [R, I, k, k]; B, transposed, [R, O]; [O]
    trials: frozenset[int]  # those whose adapter has it
    of_convolution: bool

    @property
    def side(self) -> Side:
        """What LoRA+ has a rate of its own for."""
        return "down" if self.kind == "A" else "up"

    @property
    def end(self) -> int:
        """The first number behind it."""
        return self.start + math.prod(self.shape)

    def of(self, block_KP: Tensor) -> Tensor:
        """The tensor of all trials, a view: [K, *shape]."""
        return block_KP[:, self.start : self.end].view(-1, *self.shape)

    def shape_at(self, rank: int) -> tuple[int, ...]:
        """The part of it that an adapter of this rank fills, which comes first."""
        return self.shape if self.kind == "magnitude" else (rank, *self.shape[1:])


class Block:
    """The parameters of all trials and their gradients, fp32."""

    def __init__(self, places: Sequence[Place], trials: int, device: torch.device) -> None:
        self.places = places
        size = places[-1].end
        self.values_KP = torch.zeros(trials, size, device=device)
        self.gradients_KP = torch.zeros(trials, size, device=device)
        self.layered = {place.key: self._leaf(place) for place in places}

    def _leaf(self, place: Place) -> Parameter:
        """What a layer computes with. Autograd adds to its gradient in place, which is part of the block."""
        parameter = Parameter(place.of(self.values_KP))
        parameter.grad = place.of(self.gradients_KP)
        return parameter


class PackedMember:
    """One trial's row of a block; the `Member` of `harness.models.model`."""

    def __init__(self, block: Block, trial: int, adapter: LowRankAdapter) -> None:
        self._block, self._trial, self._rank = block, trial, adapter.rank
        self._places = [place for place in block.places if trial in place.trials]
        self._groups: list[ParameterGroup] = []
        self._bounds: list[tuple[int, int]] = []
        for part, side in dict.fromkeys((place.part, place.side) for place in block.places):
            of_group = [place for place in block.places if (place.part, place.side) == (part, side)]
            if any(trial in place.trials for place in of_group):
                start, end = of_group[0].start, of_group[-1].end
                parameter = Parameter(block.values_KP[trial, start:end])
                parameter.grad = block.gradients_KP[trial, start:end]
                self._groups.append(ParameterGroup(part=part, side=side, parameters=[parameter]))
                self._bounds.append((start, end))

    def groups(self) -> list[ParameterGroup]:
        """One long parameter for each part and side, fp32; its gradient is always there."""
        return self._groups

    def clear_gradients(self) -> None:
        """Set them to zero."""
        self._block.gradients_KP[self._trial].zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the adapter as its file has it: fp32, on the CPU."""
        row_P = self._block.values_KP[self._trial].detach().to("cpu", copy=True)
        return {
            place.key: _as_in_file(place, self._own(place, row_P)).clone(
                memory_format=torch.contiguous_format
            )
            for place in sorted(self._places, key=lambda place: place.key)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave, from a pack of whatever other trials."""
        assert state.keys() == {place.key for place in self._places}, (
            "the state is of an adapter on other modules"
        )
        with torch.no_grad():
            for place in self._places:
                own = self._own(place, self._block.values_KP[self._trial])
                own.copy_(_as_in_block(place, state[place.key]))

    def trimmed(self, number: int, values: Tensor) -> Tensor:
        """What lies beside parameter `number`, as an optimizer's moments, without the padding."""
        return torch.cat([own.flatten() for own in self._within(number, values)])

    def padded(self, number: int, values: Tensor) -> Tensor:
        """What `trimmed` gave, with this pack's padding, as zeros."""
        start, end = self._bounds[number]
        padded = torch.zeros(end - start, dtype=values.dtype)
        owns = self._within(number, padded)
        for own, piece in zip(owns, values.split([own.numel() for own in owns]), strict=True):
            own.copy_(piece.view_as(own))
        return padded

    def _within(self, number: int, values: Tensor) -> list[Tensor]:
        start, end = self._bounds[number]
        places = [place for place in self._places if start <= place.start < end]
        return [self._own(place, values, offset=start) for place in places]

    def _own(self, place: Place, row: Tensor, *, offset: int = 0) -> Tensor:
        """This trial's numbers of a place, a view: they are the first ones."""
        shape = place.shape_at(self._rank)
        start = place.start - offset
        return row[start : start + math.prod(shape)].view(shape)


def _as_in_file(place: Place, own: Tensor) -> Tensor:
    """PEFT's shapes: B of a convolution is [O, R, 1, 1], its magnitude [1, O, 1, 1]."""
    match place.kind:
        case "A":
            return own
        case "B":
            up_OR = own.transpose(0, 1)
            return up_OR[..., None, None] if place.of_convolution else up_OR
        case "magnitude":
            return own[None, :, None, None] if place.of_convolution else own


def _as_in_block(place: Place, saved: Tensor) -> Tensor:
    match place.kind:
        case "A":
            return saved
        case "B":
            return saved.flatten(1).transpose(0, 1)
        case "magnitude":
            return saved.flatten()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Site:
    """A module that some of the trials' adapters act on."""

    prefix: str  # of the keys of its tensors
    parent: Any
    name: str  # of the module in its parent
    module: Any
    trials: frozenset[int]


@contextmanager
def low_rank(
    pipeline: Any, adapters: Sequence[LowRankAdapter], seeds: Sequence[int | None], current: Pass
) -> Iterator[list[PackedMember]]:
    """Attach them, trial k's started from `seeds[k]`, or zero without; on leaving, the base is itself."""
    sites = _sites(pipeline, adapters)
    device = pipeline.unet.device
    block = Block(_places(sites, adapters), len(adapters), device)
    members = []
    for trial, (adapter, seed) in enumerate(zip(adapters, seeds, strict=True)):
        member = PackedMember(block, trial, adapter)
        if seed is not None:
            own = {site.prefix: site.module for site in sites if trial in site.trials}
            member.load_state_dict(fresh_state(own, adapter, seed))
        members.append(member)
    # A row of the block is no block of its own, and autograd warns that adding to it could be faster.
    warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
    with ExitStack() as replaced:
        for site in sites:
            dora = [trial in site.trials and a.kind == "dora" for trial, a in enumerate(adapters)]
            layer = PackedLayer(
                site.module,
                current=current,
                adapters=adapters,
                name=site.prefix,
                down=block.layered[f"{site.prefix}.lora_A.weight"],
                up_KRO=block.layered[f"{site.prefix}.lora_B.weight"],
                magnitude_KO=block.layered.get(f"{site.prefix}.lora_magnitude_vector"),
                is_dora_K=torch.tensor(dora, device=device),
            )
            replaced.callback(setattr, site.parent, site.name, site.module)
            setattr(site.parent, site.name, layer)
        yield members


def _sites(pipeline: Any, adapters: Sequence[LowRankAdapter]) -> list[_Site]:
    """The UNet's, then the text encoders', by name. Raises ModelError for blocks that name nothing."""
    trials: dict[str, set[int]] = {}
    parents: dict[str, Any] = {}
    for trial, adapter in enumerate(adapters):
        named = [("unet.", pipeline.unet, unet_targets(pipeline.unet, adapter))]
        if adapter.text_encoders:
            for _, encoder in ENCODERS:
                body = text_body(getattr(pipeline, encoder))
                names = text_targets(body, adapter, whole=encoder == "text_encoder_2")
                named.append((f"{encoder}.{TEXT_BODY}", body, names))
        for prefix, root, names in named:
            for name in names:
                trials.setdefault(f"{prefix}{name}", set()).add(trial)
                parents[f"{prefix}{name}"] = root.get_submodule(name.rpartition(".")[0])
    order = sorted(trials, key=lambda prefix: (not prefix.startswith("unet."), prefix))
    return [_site(prefix, parents[prefix], frozenset(trials[prefix])) for prefix in order]


def _site(prefix: str, parent: Any, trials: frozenset[int]) -> _Site:
    name = prefix.rpartition(".")[2]
    return _Site(prefix=prefix, parent=parent, name=name, module=parent.get_submodule(name), trials=trials)


def _places(sites: Sequence[_Site], adapters: Sequence[LowRankAdapter]) -> list[Place]:
    """One after the other: of each part all A, then all B and magnitudes."""
    places: list[Place] = []
    for part in ("unet", "text_encoders"):
        of_part = [site for site in sites if site.prefix.startswith("unet.") == (part == "unet")]
        for kinds in (("A",), ("B", "magnitude")):
            for site in of_part:
                for kind in kinds:
                    trials = site.trials
                    if kind == "magnitude":
                        trials = frozenset(trial for trial in trials if adapters[trial].kind == "dora")
                    if trials:
                        places.append(_place(site, part, kind, trials, adapters, places))
    return places


def _place(
    site: _Site,
    part: Any,
    kind: Any,
    trials: frozenset[int],
    adapters: Sequence[LowRankAdapter],
    before: Sequence[Place],
) -> Place:
    widest = max(adapter.rank for adapter in adapters)
    rank = widest + -widest % RANKS
    outputs, *inputs = site.module.weight.shape
    name, shape = {
        "A": ("lora_A.weight", (rank, *inputs)),
        "B": ("lora_B.weight", (rank, outputs)),
        "magnitude": ("lora_magnitude_vector", (outputs,)),
    }[kind]
    return Place(
        key=f"{site.prefix}.{name}",
        part=part,
        kind=kind,
        start=before[-1].end if before else 0,
        shape=shape,
        trials=trials,
        of_convolution=len(inputs) > 1,
    )
