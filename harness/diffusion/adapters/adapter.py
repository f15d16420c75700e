"""Types of adapters: low-rank layers, embeddings, and the parameters that are trained."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from harness.errors import ModelError

if TYPE_CHECKING:
    import torch


class Verbatim(str):
    """A text that is data, as a dataset's caption: its signs are letters and weigh nothing.

    It equals no text that has a syntax, so that caches keep the two apart.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verbatim) and str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Verbatim, str(self)))


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankLayer:
    """What an adapter does to one layer: A is `down`, B is `up`, `scale` is alpha / rank or the like.

    Linear: [R, I] and [O, R]. Convolution: [R, I, k, k] and [O, R, 1, 1].
    """

    down: "torch.Tensor"
    up: "torch.Tensor"
    scale: float
    magnitude_O: "torch.Tensor | None" = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RotatedLayer:
    """What OFT does to one layer W [O, I]: W R on its inputs (PEFT), Rᵀ W on its outputs (kohya, LyCORIS).

    R is block-diagonal; `turn_kbb` are the blocks of R − I.
    """

    turn_kbb: "torch.Tensor"
    side: Literal["inputs", "outputs"]


AdapterLayer = LowRankLayer | RotatedLayer
LowRank = Mapping[str, AdapterLayer]  # by the name of the module; empty for an adapter without a part here


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """The vectors [N, D] that stand for `word`, one tensor per text encoder.

    `start` is where training began; None if the file does not say, and then only scale 1 is known.
    """

    word: str
    learnt_ND: "tuple[torch.Tensor, torch.Tensor]"
    start_ND: "tuple[torch.Tensor, torch.Tensor] | None"

    @property
    def vectors(self) -> int:
        """How many tokens stand for the word."""
        return self.learnt_ND[0].shape[0]

    def at(self, scale: float) -> "tuple[torch.Tensor, torch.Tensor]":
        """The vectors start + scale · (learnt − start). Raises ModelError where the start is not known."""
        if scale == 1:
            return self.learnt_ND
        if self.start_ND is None:
            raise ModelError(
                f"the embedding of {self.word!r} does not say where its vectors started, so it can act at "
                f"scale 1 alone, not {scale:g}"
            )
        first, second = (
            start + scale * (learnt - start)
            for start, learnt in zip(self.start_ND, self.learnt_ND, strict=True)
        )
        return first, second


_identities = itertools.count()


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """An adapter in memory: its low-rank parts by module, or an embedding.

    `identity` is its own in this process. The text encoders' modules are named from within the encoder's
    body (`encoder.layers.0.…`).
    """

    unet: LowRank = field(default_factory=dict)
    text_encoder: LowRank = field(default_factory=dict)
    text_encoder_2: LowRank = field(default_factory=dict)
    embedding: Embedding | None = None
    identity: int = field(default_factory=_identities.__next__)

    @property
    def acts_on_text(self) -> bool:
        """True where prompts are encoded differently under it."""
        return bool(self.text_encoder or self.text_encoder_2 or self.embedding is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class ParameterGroup:
    """Parameters that are trained at one rate. `side` is LoRA's matrix: `up` (B) has its own in LoRA+."""

    part: Literal["unet", "text_encoders"]
    side: Literal["down", "up"]
    parameters: "list[torch.nn.Parameter]"


EMA = "ema"  # in a checkpoint, the folder of the averaged export
