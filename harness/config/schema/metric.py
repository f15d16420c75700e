"""Which metrics score the images. `encoder` names the CLIP that embeds images (and words)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.config.schema.base import Frozen, Text

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
    encoder: Encoder
    higher_is_better: ClassVar[bool | None] = True
    version: ClassVar[str] = "1"  # bump when the definition changes: old scores are then made again


class AestheticMetric(Frozen):
    """A linear head on the unit image embedding: LAION's predictor or the embedded stand-in; about 1–10."""

    kind: Literal["aesthetic"] = "aesthetic"
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


class ImageStatsMetric(Frozen):
    """A number read off the pixels, without weights: shows when a gain is only saturation or contrast."""

    kind: Literal["saturation", "clipped_pixels", "contrast", "sharpness"]
    higher_is_better: ClassVar[bool | None] = None
    version: ClassVar[str] = "1"


MetricConfig = Annotated[ClipScoreMetric | AestheticMetric | ImageStatsMetric, Field(discriminator="kind")]
