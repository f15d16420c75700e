"""A trial's adapter: low-rank on the model's layers, words in its text encoders, or a file that is there."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from harness.config.schema.base import NOT_HASHED, Frozen, Label

Target = Literal["attention", "feed_forward", "projections", "convolutions", "time_embeddings"]
TextTarget = Literal["attention", "mlp"]
Block = Annotated[
    str,
    StringConstraints(pattern=r"^((down_blocks|up_blocks)\.\d+|mid_block)(\.(attentions|resnets)\.\d+)?$"),
]


def _each_once_in_order(values: tuple[str, ...]) -> tuple[str, ...]:
    """A set, written as a list: its order and its repetitions mean nothing."""
    return tuple(sorted(set(values)))


Targets = Annotated[
    tuple[Target, ...],
    Field(min_length=1, description="which of the UNet's layers"),
    AfterValidator(_each_once_in_order),
]
Blocks = Annotated[
    tuple[Block, ...] | None,
    Field(min_length=1, description="where in the UNet, as up_blocks.0 or mid_block; null: everywhere"),
    AfterValidator(lambda blocks: None if blocks is None else _each_once_in_order(blocks)),
]
Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(gt=0)] | Literal["rank", "sqrt_rank"]


def _alpha_value(alpha: Alpha, rank: int) -> float:
    """The number that the mode stands for: PEFT's `lora_alpha`."""
    match alpha:
        case "rank":
            return float(rank)
        case "sqrt_rank":
            return math.sqrt(rank)
        case number:
            return float(number)


class LowRankAdapter(Frozen):
    """LoRA (Hu et al. 2021): W + scale · B A, of low rank.

    kind `lora`: scale = alpha / rank. `rslora` (Kalajdzievski 2023): alpha / √rank. `dora` (Liu et al. 2024):
    alpha / rank, and a trained magnitude for every output of W.

    `init` is PEFT's `init_lora_weights`: `kaiming` draws A uniformly, whatever the rank, `gaussian` with
    deviation 1 / rank; B is zero. `orthogonal` draws both so that B A is zero. Those that change the base
    (pissa, olora, loftq) or need data (eva, corda) are not here: the base is shared by all trials.

    `alpha: rank` keeps LoRA's scale at 1, so a rank axis also changes the effective learning rate; a number
    is taken as it is, `1` among them (kohya's default).
    """

    kind: Literal["lora", "rslora", "dora"] = "lora"
    rank: Rank = 8
    alpha: Alpha = "rank"
    init: Annotated[
        Literal["kaiming", "gaussian", "orthogonal"],
        Field(description="how A starts; gaussian: of deviation 1 / rank, as diffusers' scripts have it"),
    ] = "kaiming"
    dropout: Annotated[float, Field(ge=0, lt=1, description="of the adapter's input, in training")] = 0.0
    targets: Targets = ("attention",)
    blocks: Blocks = None
    text_encoders: Annotated[bool, Field(description="train both text encoders too")] = False
    text_encoder_targets: Annotated[
        tuple[TextTarget, ...],
        Field(min_length=1, description="which of the text encoders' layers"),
        AfterValidator(_each_once_in_order),
    ] = ("attention",)

    @model_validator(mode="after")
    def _all_of_it_is_used(self) -> "LowRankAdapter":
        if self.text_encoder_targets != ("attention",) and not self.text_encoders:
            raise ValueError("text_encoder_targets is not used: set text_encoders: true, or remove it")
        if self.init == "orthogonal" and (self.rank % 2 or "convolutions" in self.targets):
            raise ValueError("init: orthogonal is for even ranks on linear layers, without convolutions")
        return self

    @property
    def alpha_value(self) -> float:
        """The number that the mode stands for: PEFT's `lora_alpha`."""
        return _alpha_value(self.alpha, self.rank)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha_value / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


class ProductAdapter(Frozen):
    """LoHa or LoKr (Yeh et al. 2024), as PEFT makes them: W + alpha / rank · ΔW, of more than `rank`.

    `loha`: ΔW = (A₁ B₁) ∘ (A₂ B₂), both of rank `rank`. `lokr`: ΔW = W₁ ⊗ W₂; W₂ is of rank `rank`, or whole
    where that has no more numbers. They are trained on the UNet alone, and each run alone.
    """

    kind: Literal["loha", "lokr"]
    rank: Rank = 8
    alpha: Alpha = "rank"
    factor: Annotated[
        int | None,
        Field(ge=2, le=4096, description="lokr: the size of W₁; null: as near as can be to that of W₂"),
    ] = None
    targets: Targets = ("attention",)
    blocks: Blocks = None

    @model_validator(mode="after")
    def _all_of_it_is_used(self) -> "ProductAdapter":
        if self.factor is not None and self.kind == "loha":
            raise ValueError("factor is of lokr, and not used by loha; remove it")
        return self

    @property
    def alpha_value(self) -> float:
        """The number that the mode stands for: PEFT's `alpha`."""
        return _alpha_value(self.alpha, self.rank)

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha_value / self.rank


class OftAdapter(Frozen):
    """OFT (Qiu et al. 2023), as PEFT makes it: W R, where R turns the layer's inputs block by block.

    R = (I − Q)(I + Q)⁻¹ for a skew-symmetric Q, so that it is orthogonal. It is trained on the UNet's linear
    layers alone, and each run alone.
    """

    kind: Literal["oft"]
    block_size: Annotated[
        int,
        Field(ge=2, le=4096, description="of R; the nearest that divides a layer's inputs"),
    ] = 32
    targets: Targets = ("attention",)
    blocks: Blocks = None

    @model_validator(mode="after")
    def _linear_layers(self) -> "OftAdapter":
        if "convolutions" in self.targets:
            raise ValueError("targets: convolutions cannot be turned by oft; allowed: linear layers")
        return self


class TextualInversion(Frozen):
    """Textual inversion (Gal et al. 2022): vectors that stand for a word, learnt in both text encoders.

    Wherever the adapter acts, each `word` of the prompt is replaced by the vectors. At scale s they are
    start + s · (learnt − start), where start is the embedding of `initial` as it was.
    """

    kind: Literal["textual_inversion"] = "textual_inversion"
    word: Annotated[str, StringConstraints(pattern=r"^\w+$", to_lower=True)] = "wrong"
    vectors: Annotated[int, Field(ge=1, le=32, description="tokens that stand for the word")] = 4
    initial: Annotated[
        str | None,
        StringConstraints(pattern=r"^\w+$", to_lower=True),
        Field(description="word whose embedding the vectors start from; null: `word` itself"),
    ] = None


class HubFile(Frozen):
    """An adapter in a repository on the Hugging Face hub."""

    id: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$"), Field(description="owner/name")]
    revision: Annotated[
        str | None, Field(description="commit, tag or branch; null: main, which may change under you")
    ] = None
    weight_name: Annotated[
        str | None, Field(description="the file in it; null: pytorch_lora_weights.safetensors")
    ] = None


class GivenAdapter(Frozen):
    """An adapter that is there already: nothing is trained, and the trial has no recipe and no training.

    `axes.adapter.file` takes files, folders of checkpoints and patterns, as `out/wrong-*.safetensors`.
    """

    kind: Literal["file"]
    name: Label = None
    file: Annotated[Path | None, Field(description="the file, or the folder it was saved in"), NOT_HASHED] = (
        None
    )
    hub: Annotated[HubFile | None, Field(description="instead of a file: one of the hub's")] = None
    digest: Annotated[str | None, Field(description="hash of the file; filled in when read")] = None

    @model_validator(mode="after")
    def _one_source(self) -> "GivenAdapter":
        if (self.file is None) == (self.hub is None):
            raise ValueError("give file or hub, one of them")
        return self


def _lora_unless_said(raw: Any) -> Any:
    return {"kind": "lora", **raw} if isinstance(raw, dict) else raw


AdapterConfig = Annotated[  # one that is trained
    LowRankAdapter | ProductAdapter | OftAdapter | TextualInversion,
    Field(discriminator="kind"),
    BeforeValidator(_lora_unless_said),
]
TrialAdapter = Annotated[
    LowRankAdapter | ProductAdapter | OftAdapter | TextualInversion | GivenAdapter,
    Field(discriminator="kind"),
    BeforeValidator(_lora_unless_said),
]
