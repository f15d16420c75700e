"""The layers of a pack: what each trial's adapter adds to its rows, in place of the frozen base's layers."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.models.grouped import Span, add_low_rank
from harness.spec.adapter import LowRankAdapter


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
