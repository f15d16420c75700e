"""How images are generated and compared: arms, prompts, sampler, analysis."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from harness.config.schema.adapter import AdapterConfig, HubFile
from harness.config.schema.base import NOT_HASHED, Frozen, Name, SamplerSteps, Seed, Text
from harness.config.schema.recipe import DegradationName, RecipeConfig, Severity, ShamConfig
from harness.config.schema.training import TrainingConfig

Noise = Literal["per_prompt", "shared"]
Branch = Literal["negative", "positive", "both"]
Split = Literal["dev", "test"]
Controls = Literal["minimal", "standard", "full"]
PROMPT = "{prompt}"  # in an arm's negative prompt: the image's own prompt


def negative_text(negative: str, prompt: str) -> str:
    """The negative prompt of one image."""
    return negative.replace(PROMPT, prompt)


def plain_negative(negative: str) -> str:
    """The negative prompt where no adapter acts, as in a refiner: without the image's own prompt.

    Both branches would be alike there, and guidance would do nothing.
    """
    return negative.replace(PROMPT, "").strip(" ,") if PROMPT in negative else negative


Share = Annotated[float, Field(ge=0, le=1)]


def _ordered(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    if interval is not None and interval[0] >= interval[1]:
        raise ValueError("must be [start, stop] with start below stop")
    return interval


# Shares of the denoising steps: guidance acts from start to before stop, and outside the prompt's row alone.
Interval = Annotated[tuple[Share, Share] | None, AfterValidator(_ordered)]


class CfgGuider(Frozen):
    """Classifier-free guidance (Ho & Salimans 2022)."""

    kind: Literal["cfg"] = "cfg"


class CfgZeroStarGuider(Frozen):
    """CFG-Zero* (Fan et al. 2025): the negative row scaled to the positive one; zeros in the first steps."""

    kind: Literal["cfg_zero_star"] = "cfg_zero_star"
    zero_init_steps: Annotated[
        int, Field(ge=0, le=1000, description="first steps whose prediction is zero")
    ] = 1


class ApgGuider(Frozen):
    """Adaptive projected guidance (Sadat et al. 2025): less of what is parallel to the prompt's row."""

    kind: Literal["apg"] = "apg"
    momentum: Annotated[
        float | None, Field(gt=-1, lt=1, description="of the differences over the steps; null: none")
    ] = None
    norm: Annotated[float, Field(ge=0, description="largest length of a difference; 0: no limit")] = 15.0
    eta: Annotated[float, Field(ge=0, description="share of the parallel part that is kept")] = 1.0


PERTURBED = ("pag", "seg", "slg")


def _refuse_perturbed(guider: Any) -> Any:
    if isinstance(guider, dict) and guider.get("kind") in PERTURBED:
        raise ValueError(
            f"{guider['kind']} needs a third row with perturbed attention, which is not generated here; "
            "allowed: cfg, cfg_zero_star, apg"
        )
    return guider


GuiderConfig = Annotated[
    Annotated[CfgGuider | CfgZeroStarGuider | ApgGuider, Field(discriminator="kind")],
    BeforeValidator(_refuse_perturbed),
]


class ArmAdapter(Frozen):
    """An adapter that acts in an arm, and on which rows of the guidance batch.

    The trial's own, where `recipe`, `sham`, `file` and `hub` are null; else another one: trained on `recipe`,
    with the trial's settings except for what `adapter` and `training` replace, trained like the trial's own
    on clean images, or read from a file.
    """

    scale: Annotated[float, Field(description="multiplies the adapter's own scale")] = 1.0
    branch: Branch = "negative"
    weights: Annotated[
        Literal["last", "ema"], Field(description="ema: the averaged export; needs training.ema")
    ] = "last"
    recipe: Annotated[
        RecipeConfig | None,
        Field(description="null: the trial's own adapter; else one trained on this"),
    ] = None
    sham: Annotated[
        ShamConfig | None,
        Field(description="instead of a recipe: one trained like the trial's own, on clean images"),
    ] = None
    adapter: Annotated[
        AdapterConfig | None, Field(description="with recipe: in place of the trial's own; null: alike")
    ] = None
    training: Annotated[
        TrainingConfig | None, Field(description="with recipe: in place of the trial's own; null: alike")
    ] = None
    file: Annotated[
        Path | None, Field(description="a LoRA or an embedding, in any tool's layout"), NOT_HASHED
    ] = None
    hub: Annotated[HubFile | None, Field(description="instead of a file: one of the hub's")] = None
    digest: Annotated[str | None, Field(description="hash of the file; filled in when read")] = None

    @property
    def is_own(self) -> bool:
        """True where it is the trial's own adapter."""
        return not self.is_trained_apart and not self.is_file

    @property
    def is_trained_apart(self) -> bool:
        """True where a training run of its own makes it."""
        return self.recipe is not None or self.sham is not None

    @property
    def is_file(self) -> bool:
        """True where it is given as a file, here or on the hub."""
        return self.file is not None or self.hub is not None

    @model_validator(mode="after")
    def _one_source(self) -> "ArmAdapter":
        if sum(source is not None for source in (self.recipe, self.sham, self.file, self.hub)) > 1:
            raise ValueError(
                "give recipe or sham (an adapter to train), file or hub (one that is there), not several"
            )
        if self.sham is not None and (self.adapter is not None or self.training is not None):
            raise ValueError("a sham copies adapter and training; remove them, or give a recipe in its place")
        if self.recipe is None and (self.adapter is not None or self.training is not None):
            raise ValueError("adapter and training are settings of another adapter; give its recipe too")
        if self.is_file and self.weights != "last":
            raise ValueError("weights: ema is of a training run; give the averaged file itself as file")
        return self


class MergeConfig(Frozen):
    """All adapters of an arm merged into one, each weighted by its scale, by PEFT's methods.

    `linear` adds them; `ties` (Yadav et al. 2023) and `dare` (Yu et al. 2024) keep `density` of their
    numbers.
    """

    method: Literal["linear", "ties", "dare"]
    density: Annotated[float | None, Field(gt=0, le=1, description="ties and dare alone")] = None
    seed: Annotated[Seed | None, Field(description="dare alone, which drops numbers at random")] = None

    @model_validator(mode="after")
    def _of_this_method(self) -> "MergeConfig":
        if (self.density is None) != (self.method == "linear"):
            raise ValueError("density is needed by ties and dare, and not used by linear")
        if (self.seed is None) != (self.method != "dare"):
            raise ValueError("seed is needed by dare, and not used by linear and ties")
        return self


class PostConfig(Frozen):
    """A damage of known size, done to each finished image: what the metrics must find."""

    degrade: DegradationName
    severity: Annotated[Severity, Field(description="from 0, no damage, to 1")]


EFFECTIVE_GUIDANCE = "effective_guidance"  # what a control may match an arm by, beside the sweep's metrics


class MatchConfig(Frozen):
    """The control's guidance is searched for: there its mean statistic on dev prompts is that of an arm.

    It is found for the selected trial alone. The last three fields are where the search stands.
    """

    arm: Annotated[Name, Field(description="an arm with the trial's own adapter")]
    by: Annotated[Name, Field(description=f"a metric but the primary one, or {EFFECTIVE_GUIDANCE}")]
    between: Annotated[
        tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None,
        AfterValidator(_ordered),
        Field(description="lowest and highest guidance; null: half and twice the arm's distance from 1"),
    ] = None
    trial: Annotated[str | None, Field(description="the selected trial; filled in during the sweep")] = None
    tried: Annotated[tuple[float, ...], Field(description="guidances; filled in during the sweep")] = ()
    missing: Annotated[
        str | None, Field(description="why no guidance is found; filled in during the sweep")
    ] = None


class ArmConfig(Frozen):
    """How an arm's images are generated. An arm without the trial's own adapter is a control.

    In a sweep's file an arm may have `axes` of its own, as `adapters.0.scale: [0.5, 1, 2]`: it stands for one
    arm per point, named after its values. `family` and `params` are then the name and values it came from.
    """

    name: Name
    family: Annotated[Name | None, NOT_HASHED] = None
    params: Annotated[dict[str, Any], NOT_HASHED] = Field(default_factory=dict)
    added: Annotated[bool, NOT_HASHED] = False  # by the sweep's `controls`
    negative: Annotated[
        str,
        Field(
            max_length=20_000,
            description="negative prompt; empty for none; {prompt} in it is the image's own prompt",
        ),
    ] = ""
    guidance: Annotated[float | None, Field(ge=0, description="in place of the sampler's guidance")] = None
    guidance_interval: Annotated[Interval, Field(description="in place of the sampler's")] = None
    guider: Annotated[GuiderConfig | None, Field(description="in place of the sampler's")] = None
    match: Annotated[
        MatchConfig | None, Field(description="of a control: a guidance at which it matches an arm")
    ] = None
    adapters: tuple[ArmAdapter, ...] = ()
    merge: MergeConfig | None = None
    post: Annotated[PostConfig | None, Field(description="a damage of the finished image")] = None

    @property
    def is_control(self) -> bool:
        """True where no adapter of the trial itself acts."""
        return not any(adapter.is_own for adapter in self.adapters)

    @property
    def can_select(self) -> bool:
        """Whether trials can be judged against it: a control that is there beforehand, and is not damaged."""
        return self.is_control and self.match is None and self.post is None

    @property
    def waits_for_selection(self) -> bool:
        """Whether its test images are those of the selected trial: it needs training, or is matched."""
        return self.match is not None or not all(adapter.is_file for adapter in self.adapters)

    @model_validator(mode="after")
    def _one_guidance(self) -> "ArmConfig":
        if self.match is None:
            return self
        if self.guidance is not None and self.match.trial is None:
            raise ValueError("guidance is found by match; give one of the two")
        if not self.is_control:
            raise ValueError("match is of a control; leave out the trial's own adapter")
        return self

    @model_validator(mode="after")
    def _merges_something(self) -> "ArmConfig":
        if self.merge is not None:
            if len(self.adapters) < 2:
                raise ValueError("merge needs two adapters or more")
            if len({adapter.branch for adapter in self.adapters}) > 1:
                raise ValueError("adapters that are merged act on one branch; give all the same")
        return self


# Those whose pipelines take them, and which generate the same image alone and in a batch.
Scheduler = Literal[
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


# The refiner's pipeline starts in the middle of a schedule, with a scheduler that has no past. These do not
# bear it: those of second order are cut between the two halves of a step, and PNDM and LMS count on steps
# that were not taken. Each would start the refiner on another noise level than that of the latents.
NO_HAND_OVER: frozenset[Scheduler] = frozenset(
    {
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
    }
)


class Guidance(NamedTuple):
    """How an arm is guided."""

    scale: float
    interval: tuple[float, float] | None  # shares of the steps; None: always
    guider: GuiderConfig


class SamplerConfig(Frozen):
    """How one image is generated."""

    steps: SamplerSteps = 20
    guidance: Annotated[float, Field(ge=0)] = 5.0
    guidance_rescale: Annotated[float, Field(ge=0, le=1, description="φ of Lin et al. 2023, section 3.4")] = (
        0.0
    )
    guidance_interval: Annotated[
        Interval, Field(description="shares of the steps between which guidance acts; null: always")
    ] = None
    guider: Annotated[
        GuiderConfig, Field(description="how the two rows become one prediction, by diffusers' guiders")
    ] = CfgGuider()
    scheduler: Annotated[
        Scheduler | None, Field(description="diffusers' name; null: the model's own, Euler for SDXL")
    ] = None
    size: Annotated[
        tuple[Annotated[int, Field(ge=8, le=8192)], Annotated[int, Field(ge=8, le=8192)]] | None,
        Field(description="width and height in pixels, multiples of 8; null: the model's own"),
    ] = None
    refiner_start: Annotated[
        float | None,
        Field(gt=0, lt=1, description="share of the noise schedule before the refiner; null: base alone"),
    ] = 0.8
    noise: Annotated[
        Noise,
        Field(
            description="per_prompt: starting noise from prompt and seed; shared: from the seed alone, the "
            "same for all prompts, for image grids: no p-value below 8 seeds"
        ),
    ] = "per_prompt"

    @model_validator(mode="after")
    def _whole_latents(self) -> "SamplerConfig":
        if self.size is not None and any(side % 8 for side in self.size):
            raise ValueError("size must be multiples of 8, the VAE's factor")
        return self

    def guidance_of(self, arm: ArmConfig) -> Guidance:
        """The arm's own where it has one, else the sampler's."""
        interval = arm.guidance_interval or self.guidance_interval
        return Guidance(
            scale=self.guidance if arm.guidance is None else arm.guidance,
            interval=None if interval == (0, 1) else interval,
            guider=arm.guider or self.guider,
        )


class Prompt(Frozen):
    """A prompt of the evaluation. Dev prompts select the best trial; test prompts confirm it."""

    text: Text
    tags: tuple[str, ...] = ()
    split: Split


class AnalysisConfig(Frozen):
    """What is compared, and with which certainty."""

    primary: Annotated[Name, Field(description="metric that selects the best trial")] = "aesthetic"
    control: Annotated[Name, Field(description="control arm that the selection is made against")] = "placebo"
    margin: Annotated[
        float | None,
        Field(
            gt=0,
            description="smallest difference of the primary metric worth having; null: none is equivalent",
        ),
    ] = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[
        int, Field(ge=100, le=10_000_000, description="patterns of signs, where there are more")
    ] = 10_000
    seed: Seed = 0
