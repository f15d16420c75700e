"""How an adapter is trained. Every field can be swept by its dotted name, as `training.schedule.kind`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config.schema.base import Frozen, Seed, Steps, Text
from harness.config.schema.recipe import RecipeConfig

TRAINING_TIMESTEPS = 1000
CAPTION = "{caption}"


class OptimizerConfig(Frozen):
    """What turns gradients into steps.

    `adamw` (Loshchilov & Hutter 2019), `adamw_8bit` (Dettmers et al. 2022; needs bitsandbytes and CUDA) or
    `prodigy` (Mishchenko & Defazio 2023; needs prodigyopt), whose `learning_rate` is a factor, usually 1.
    """

    kind: Literal["adamw", "adamw_8bit", "prodigy"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    d_coef: Annotated[
        float | None, Field(gt=0, description="prodigy alone: factor of its estimate; null: 1")
    ] = None

    @model_validator(mode="after")
    def _of_this_kind(self) -> "OptimizerConfig":
        if self.d_coef is not None and self.kind != "prodigy":
            raise ValueError(f"d_coef is prodigy's, and {self.kind} does not use it; remove it")
        return self


class ScheduleConfig(Frozen):
    """The learning rate over the steps: rises linearly for `warmup_steps`, then is constant or falls to 0.

    Under `constant` a checkpoint of a longer run equals a shorter run, so trials that differ in
    `training.steps` alone share one run; under `linear` and `cosine` each length is a run of its own.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0

    @property
    def depends_on_length(self) -> bool:
        """True where a step's rate depends on how many steps there will be."""
        return self.kind != "constant"


class TimestepConfig(Frozen):
    """Which noise levels are trained on: from `lowest` to `highest` (of 0 … 999), both included.

    `uniform`, or `logit_normal` (Esser et al. 2024): the sigmoid of a normal of `mean` and `deviation`, over
    the range.
    """

    distribution: Literal["uniform", "logit_normal"] = "uniform"
    lowest: Annotated[int, Field(ge=0, lt=TRAINING_TIMESTEPS)] = 0
    highest: Annotated[int, Field(ge=0, lt=TRAINING_TIMESTEPS)] = TRAINING_TIMESTEPS - 1
    mean: Annotated[float | None, Field(description="logit_normal alone; null: 0")] = None
    deviation: Annotated[float | None, Field(gt=0, description="logit_normal alone; null: 1")] = None

    @model_validator(mode="after")
    def _consistent(self) -> "TimestepConfig":
        if self.lowest > self.highest:
            raise ValueError("lowest must not be above highest")
        if self.distribution == "uniform" and not (self.mean is None and self.deviation is None):
            raise ValueError("mean and deviation are logit_normal's; uniform does not use them")
        return self


class PriorConfig(Frozen):
    """Prior preservation (Ruiz et al. 2023): each step also trains on as many images of the class.

    They are generated once per sweep by `recipe`, like any dataset, and keep their own size and crop.
    """

    prompt: Text
    recipe: RecipeConfig
    weight: Annotated[float, Field(gt=0)] = 1.0


class TrainingConfig(Frozen):
    """DreamBooth training on one prompt, or on captions where the prompt holds `{caption}`."""

    prompt: Annotated[Text, Field(description="`{caption}` in it is the image's own caption")] = "wrong"
    caption_dropout: Annotated[
        float, Field(ge=0, lt=1, description="share of rows trained on the empty prompt")
    ] = 0.0
    steps: Steps = 200
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    text_encoder_learning_rate: Annotated[float | None, Field(gt=0, description="null: as learning_rate")] = (
        None
    )
    lora_plus_ratio: Annotated[
        float, Field(gt=0, description="rate of B over that of A (LoRA+, Hayou et al. 2024)")
    ] = 1.0
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    batch_size: Annotated[int, Field(ge=1, le=4096, description="images per forward pass")] = 4
    gradient_accumulation: Annotated[
        int, Field(ge=1, le=4096, description="forward passes per optimizer step")
    ] = 1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    min_snr_gamma: Annotated[
        float | None, Field(gt=0, description="min-SNR-γ weighting (Hang et al. 2023); null: none")
    ] = None
    min_snr_v: Annotated[
        Literal["kohya", "diffusers"],
        Field(
            description="weight of a v-predicting model: min(SNR, γ) / (SNR + 1) as kohya and the paper have "
            "it, or min(SNR, γ) / SNR + 1 as diffusers' scripts do"
        ),
    ] = "kohya"
    noise_offset: Annotated[
        float, Field(ge=0, description="deviation of an offset common to each channel's noise")
    ] = 0.0
    timesteps: TimestepConfig = Field(default_factory=TimestepConfig)
    crop: Annotated[
        Literal["center", "random"], Field(description="how an image that is not square is made so")
    ] = "center"
    flip: Annotated[bool, Field(description="mirror half of the rows")] = False
    prior: PriorConfig | None = None
    ema: Annotated[
        float | None, Field(gt=0, lt=1, description="decay of an averaged second export; null: none")
    ] = None
    holdout: Annotated[
        int, Field(ge=0, le=100_000, description="images kept from training, for a loss at fixed noise")
    ] = 0
    seed: Seed = 0

    @model_validator(mode="after")
    def _all_of_it_is_used(self) -> "TrainingConfig":
        if self.min_snr_v != "kohya" and self.min_snr_gamma is None:
            raise ValueError("min_snr_v is not used: set min_snr_gamma, or remove it")
        rates = {self.learning_rate, self.text_encoder_learning_rate or self.learning_rate}
        if self.optimizer.kind == "prodigy" and (len(rates) > 1 or self.lora_plus_ratio != 1):
            raise ValueError(
                "optimizer.kind: prodigy has one rate for all parameters; leave lora_plus_ratio at 1 and "
                "text_encoder_learning_rate at null"
            )
        return self
