"""The layers of a pack: what each trial's adapter adds to its rows, in hooks on the frozen base's modules."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.models.adapted import Factors
from harness.models.grouped import Span, add_low_rank
from harness.spec.adapter import LowRankAdapter


@dataclass(kw_only=True, eq=False)
class Pass:
    """What the layers look up in each forward pass."""

    rows: Sequence[Span] | None = None  # null: all are the only trial's
    trials: Sequence[int] = ()  # the trial of each row, neighbours together
    only: int | None = None  # a text encoder's rows are all of one trial
    dropout_seeds: Sequence[int] = ()  # one per trial
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # the adapters', by key
    joined: Callable[[], Mapping[str, Tensor]] = dict  # the same, for a compiled pass


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedLayer:
    """A forward hook on one module."""

    current: Pass
    adapters: Sequence[LowRankAdapter]  # of the K trials
    name: str
    down: str  # the keys of A, of B transposed and of the magnitudes
    up: str
    magnitude: str | None  # null where no trial is DoRA; else others' rows mean nothing
    scale_K: Tensor | None  # null where all are 1
    is_dora_K: Tensor  # those whose adapter has a magnitude here

    def __call__(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], base: Tensor) -> Tensor:
        """What the module gives with the adapters' part."""
        rows, only = self.current.rows, self.current.only
        down, up_KRO, more_KO = self._factors(module)
        if only is not None:
            down, up_KRO, rows = down[only : only + 1], up_KRO[only : only + 1], None
            more_KO = None if more_KO is None else more_KO[only : only + 1]
        x = inputs[0]
        if (kept := self._kept(x.shape, x)) is not None:
            x = x * kept
        return add_low_rank(module, x, base, rows, down=down, up_GRO=up_KRO, more_GO=more_KO)

    def factors(self, module: torch.nn.Linear, shape: Sequence[int]) -> Factors:
        """What acts on the module in this pass, with an input of this shape, [B, T, I]."""
        assert self.current.rows is not None and self.current.only is None, (
            "the UNet's rows are of all trials"
        )
        down_KRI, up_KRO, more_KO = self._factors(module)
        return Factors(
            rows=self.current.rows,
            down_KRI=down_KRI,
            up_KRO=up_KRO,
            more_KO=more_KO,
            kept_BTI=self._kept(shape, down_KRI),
        )

    def _factors(self, module: torch.nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """A, B with scale and gain, and what DoRA adds of the base."""
        tensors, more_KO = self.current.tensors, None
        down, up_KRO = tensors[self.down], tensors[self.up]  # [K, R, I], of convolutions [K, R, I, k, k]
        if self.scale_K is not None:
            up_KRO = up_KRO * self.scale_K[:, None, None]
        if self.magnitude is not None:
            gain_KO = self._gain(module, down, up_KRO, tensors[self.magnitude])
            up_KRO, more_KO = up_KRO * gain_KO[:, None], gain_KO - 1
        return down, up_KRO, more_KO

    def _gain(self, module: torch.nn.Module, down: Tensor, up_KRO: Tensor, magnitude_KO: Tensor) -> Tensor:
        """DoRA's m / ‖W + scale · B A‖, and 1 for other adapters.

        The norm is a constant to the gradient, as the paper's section 4.3 has it.
        """
        with torch.no_grad():
            weight_OX = module.weight.flatten(1).float()  # type: ignore[operator]
            whole_KOX = weight_OX + torch.bmm(up_KRO.transpose(1, 2), down.flatten(2))
            norm_KO = torch.linalg.vector_norm(whole_KOX, dim=2)
        return torch.where(self.is_dora_K[:, None], magnitude_KO / norm_KO, 1.0)

    def _kept(self, shape: Sequence[int], like: Tensor) -> Tensor | None:
        """Dropout's mask of the adapters' input, where gradients are kept. Computed again, it is the same."""
        if not torch.is_grad_enabled() or not any(adapter.dropout for adapter in self.adapters):
            return None
        only = self.current.only
        trials = self.current.trials if only is None else [only] * shape[0]
        kept = torch.ones(shape, dtype=like.dtype, device=like.device)
        for trial in dict.fromkeys(trials):
            if share := self.adapters[trial].dropout:
                first, count = list(trials).index(trial), list(trials).count(trial)
                # The layer by its name: its number would hang on what the other trials' adapters act on.
                seed = self.current.dropout_seeds[trial] ^ zlib.crc32(self.name.encode())
                generator = torch.Generator(like.device).manual_seed(seed % 2**63)
                drawn = torch.rand((count, *shape[1:]), generator=generator, device=like.device)
                kept[first : first + count] = (drawn >= share) / (1 - share)
        return kept
