"""Which metrics score the images. `encoder` names the CLIP that embeds images (and words)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, model_validator

from harness.config.schema.base import NOT_HASHED, Frozen, Name, Text

# The column of the tables, and what `analysis.primary` and objectives name. The scores do not depend on it.
MetricName = Annotated[Name, NOT_HASHED]


def _its_kind(given: dict[str, Any]) -> str:
    return str(given.get("kind", ""))


Encoder = Annotated[
    Text,
    Field(
        description="`emoji` (embedded), an open_clip `architecture/pretrained` such as "
        "`ViT-L-14-quickgelu/openai`, or `local-dir:PATH`"
    ),
]


class ClipScoreMetric(Frozen):
    """Cosine of image and plain prompt times 100 (Hessel et al. 2021, without their clamp and 2.5)."""

    kind: Literal["clip_score"] = "clip_score"
    name: MetricName = Field(default_factory=_its_kind)
    encoder: Encoder
    higher_is_better: ClassVar[bool | None] = True
    version: ClassVar[str] = "1"  # bump when the definition changes: old scores are then made again


class AestheticMetric(Frozen):
    """A linear head on the unit image embedding: LAION's predictor or the embedded stand-in; about 1–10."""

    kind: Literal["aesthetic"] = "aesthetic"
    name: MetricName = Field(default_factory=_its_kind)
    encoder: Encoder
    head: Annotated[
        Literal["laion", "emoji"],
        Field(description="`laion` for ViT-L-14-quickgelu/openai, `emoji` for `emoji`; both are embedded"),
    ]
    higher_is_better: ClassVar[bool | None] = True
    version: ClassVar[str] = "1"

    @model_validator(mode="after")
    def _head_of_this_encoder(self) -> "AestheticMetric":
        own = {"laion": "ViT-L-14-quickgelu/openai", "emoji": "emoji"}[self.head]
        if self.encoder != own and not self.encoder.startswith("local-dir:"):
            raise ValueError(f"head {self.head} was trained on the encoder {own}; use that, or a copy of it")
        return self


class PreferenceMetric(Frozen):
    """A CLIP that was trained on which of two images people prefer for a prompt.

    PickScore (Kirstain et al. 2023, arXiv 2305.01569) and HPS v2.1 (Wu et al. 2023, arXiv 2306.09341).
    """

    kind: Literal["pick_score", "hps_v2"]
    name: MetricName = Field(default_factory=_its_kind)
    weights: Annotated[Path, NOT_HASHED, Field(description="the published file")]
    digest: Annotated[str | None, Field(description="sha256 of the file; filled in when read")] = None
    higher_is_better: ClassVar[bool | None] = True
    version: ClassVar[str] = "1"


IqaTexts = Literal[
    "quality", "noisiness", "sharpness", "brightness", "contrast", "natural", "beautiful", "wrong"
]
IQA_TEXTS: dict[IqaTexts, tuple[str, str]] = {
    "quality": ("Good photo.", "Bad photo."),
    "noisiness": ("Clean photo.", "Noisy photo."),
    "sharpness": ("Sharp photo.", "Blurry photo."),
    "brightness": ("Bright photo.", "Dark photo."),
    "contrast": ("High contrast photo.", "Low contrast photo."),
    "natural": ("Natural photo.", "Synthetic photo."),
    "beautiful": ("Beautiful photo.", "Ugly photo."),
    "wrong": ("a good photo", "wrong"),
}


class ClipIqaMetric(Frozen):
    """How much nearer an image is to the first of two texts than to the second (Wang et al. 2023)."""

    kind: Literal["clip_iqa"] = "clip_iqa"
    name: MetricName = Field(default_factory=_its_kind)
    encoder: Encoder
    texts: Annotated[
        IqaTexts | tuple[Text, Text],
        Field(description="a pair by name, or [better, worse] in words of one's own"),
    ] = "quality"
    version: ClassVar[str] = "1"

    @property
    def pair(self) -> tuple[str, str]:
        """The two texts."""
        return IQA_TEXTS[self.texts] if isinstance(self.texts, str) else self.texts

    @property
    def higher_is_better(self) -> bool | None:
        """None for pairs of which neither text is the better one."""
        return None if self.texts in ("brightness", "contrast") else True


class DriftMetric(Frozen):
    """How far an image lies from the control's image of the same prompt and noise: 1 − cos of embeddings."""

    kind: Literal["drift"] = "drift"
    name: MetricName = Field(default_factory=_its_kind)
    encoder: Encoder
    control: Annotated[Name | None, Field(description="null: analysis.control"), NOT_HASHED] = None
    higher_is_better: ClassVar[bool | None] = None
    version: ClassVar[str] = "1"


class DiversityMetric(Frozen):
    """How far the images of one prompt lie from each other across noises: mean 1 − cos of embeddings."""

    kind: Literal["diversity"] = "diversity"
    name: MetricName = Field(default_factory=_its_kind)
    encoder: Encoder
    higher_is_better: ClassVar[bool | None] = None
    version: ClassVar[str] = "1"


class LegibilityMetric(Frozen):
    """How much of the text in an image can be read (rapidocr; extra `ocr`)."""

    kind: Literal["legibility"] = "legibility"
    name: MetricName = Field(default_factory=_its_kind)
    higher_is_better: ClassVar[bool | None] = True
    version: ClassVar[str] = "1"


class CommandMetric(Frozen):
    """A program of one's own. It reads images and prompts on stdin, and prints a number for each."""

    kind: Literal["command"] = "command"
    name: MetricName = Field(default_factory=_its_kind)
    command: Annotated[
        tuple[Text, ...],
        Field(min_length=1, description="program and arguments; files are looked for beside the sweep"),
    ]
    higher_is_better: Annotated[bool | None, Field(description="null: no better direction")]
    version: Annotated[Text, Field(description="another one scores again")] = "1"
    timeout: Annotated[float, Field(gt=0, description="seconds for 32 images"), NOT_HASHED] = 600.0
    folder: Annotated[Path | None, Field(description="of the sweep; filled in when read"), NOT_HASHED] = None
    digest: Annotated[
        str | None, Field(description="hash of the files that it names; filled in when read")
    ] = None


class ImageStatsMetric(Frozen):
    """A number read off the pixels, without weights: shows when a gain is only saturation or contrast."""

    kind: Literal["saturation", "clipped_pixels", "contrast", "sharpness"]
    name: MetricName = Field(default_factory=_its_kind)
    higher_is_better: ClassVar[bool | None] = None
    version: ClassVar[str] = "1"


MetricConfig = Annotated[
    ClipScoreMetric
    | AestheticMetric
    | PreferenceMetric
    | ClipIqaMetric
    | DriftMetric
    | DiversityMetric
    | LegibilityMetric
    | CommandMetric
    | ImageStatsMetric,
    Field(discriminator="kind"),
]


def metric_of(raw: Mapping[str, Any]) -> MetricConfig:
    """A metric as `sweep.json` has it."""
    found: MetricConfig = TypeAdapter(MetricConfig).validate_python(raw)
    return found
