"""The parameters of a pack: low-rank adapters of several trials side by side in one block of memory.

Row k of the block holds everything that trial k trains: first all A, then all B and magnitudes, the UNet's
before the text encoders'. So an optimizer has a few long tensors instead of hundreds of short ones, and a
layer has the matrices of all trials as one batch. Adapters of lower rank, or without a part in some layer,
have zeros there; the gradients of zeros are zero (that of A is a product with B, and that of B one with A),
so they stay what they are.

Shape legend: K trials, P padded numbers of one trial, R the pack's highest rank, I in, O out, k kernel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from harness.models.model import ParameterGroup
from harness.spec.adapter import LowRankAdapter

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
