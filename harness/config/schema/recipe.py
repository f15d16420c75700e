"""How an adapter's training images are made: bad, or for a sham control clean."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config.schema.base import NOT_HASHED, Count, Frozen, Label, SamplerSteps, Seed, Text

DegradationName = Literal[
    "blur", "noise", "jpeg", "pixelate", "distort", "wash_out", "crop", "duplicate", "darken", "overexpose"
]
Guidances = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1, max_length=1000)]
Severity = Annotated[float, Field(gt=0, le=1)]


class GeneratedRecipe(Frozen):
    """What every recipe has that generates its images with the model itself."""

    name: Label = None
    steps: Annotated[SamplerSteps, Field(description="denoising steps of each training image")] = 20
    refiner_start: Annotated[
        float | None,
        Field(gt=0, lt=1, description="share of the noise schedule before the refiner; null: base alone"),
    ] = 0.8
    seed: Seed = 0


class KeywordsRecipe(GeneratedRecipe):
    """Woolf's recipe: all keywords joined by ", ", each in turn weighted up, at several guidance scales.

    Gives `len(keywords) * len(guidance)` images. Weighting is compel's: `(blurry)++++` is 1.1 ** 4.
    """

    kind: Literal["keywords"] = "keywords"
    keywords: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)]
    emphasis: Annotated[int, Field(ge=0, le=10, description="number of + signs on the weighted keyword")] = 4
    guidance: Guidances = (8, 9, 10, 11, 12, 13)

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.keywords) * len(self.guidance)

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model's tokenizers must take; weighting signs are no tokens."""
        return (", ".join(self.keywords),)


class PlainRecipe(GeneratedRecipe):
    """The model's own images of plain prompts, untouched: training data for a sham adapter."""

    kind: Literal["plain"] = "plain"
    prompts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)]
    count: Count = 24
    guidance: Annotated[float, Field(ge=0)] = 5.0

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model's tokenizers must take."""
        return self.prompts


class DegradeRecipe(GeneratedRecipe):
    """The model's own images of plain prompts, damaged afterwards at a severity drawn per image."""

    kind: Literal["degrade"] = "degrade"
    prompts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)]
    count: Count = 24
    guidance: Annotated[float, Field(ge=0)] = 5.0
    degradations: Annotated[tuple[DegradationName, ...], Field(min_length=1)]
    severity: Annotated[tuple[Severity, Severity], Field(description="lowest, highest")] = (0.5, 1)

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model's tokenizers must take."""
        return self.prompts

    @model_validator(mode="after")
    def _ordered(self) -> "DegradeRecipe":
        if self.severity[0] > self.severity[1]:
            raise ValueError("severity must be [lowest, highest]")
        return self


class FolderRecipe(Frozen):
    """Images of your own: every .png, .jpg, .jpeg and .webp below a folder, in order of their names.

    An image's caption is the text file of its name beside it (`fox.png`, `fox.txt`), or its `text` in the
    folder's `metadata.jsonl`.
    """

    kind: Literal["folder"] = "folder"
    name: Label = None
    path: Annotated[Path, NOT_HASHED]
    repeats: Annotated[
        dict[str, Annotated[int, Field(ge=1, le=1000)]],
        Field(description="how often images are seen in each pass, by a pattern of names: {'hands/*': 3}"),
    ] = Field(default_factory=dict)
    digest: Annotated[
        str | None, Field(description="hash of the images and captions; filled in when read")
    ] = None
    count: Annotated[
        int | None, Field(ge=1, description="number of images found; filled in when read"), NOT_HASHED
    ] = None
    captioned: Annotated[
        bool, Field(description="whether every image has a caption; filled in when read"), NOT_HASHED
    ] = False
    left_out: Annotated[
        tuple[str, ...],
        Field(description="what of the folder is not read, a line each; filled in when read"),
        NOT_HASHED,
    ] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Nothing: the images are not generated."""
        return ()


RecipeConfig = Annotated[
    KeywordsRecipe | PlainRecipe | DegradeRecipe | FolderRecipe, Field(discriminator="kind")
]


# As many as the longest list of words for bad in the shipped sweeps, and some more.
GOOD_WORDS = (
    "high quality", "sharp focus", "clean lines", "natural colors", "well lit", "balanced composition",
    "fine detail", "smooth", "crisp", "correct anatomy", "clear subject", "professional photo", "complete",
    "tidy", "vivid", "beautiful",
)  # fmt: skip


class ShamConfig(Frozen):
    """Clean images in place of the trial's own, made in the same way."""

    keywords: Annotated[
        tuple[Text, ...],
        Field(
            min_length=1,
            max_length=1000,
            description="words for good, in place of a keywords recipe's: the first as many as it has",
        ),
    ] = GOOD_WORDS

    def recipe_like(self, recipe: RecipeConfig) -> RecipeConfig:
        """As many images at the same settings from words for good, or the images that `degrade` damages.

        Raises ValueError where there are none: images of one's own, images that are clean, too few words.
        """
        match recipe:
            case KeywordsRecipe(keywords=bad):
                if len(self.keywords) < len(bad):
                    raise ValueError(
                        f"{len(self.keywords)} of the {len(bad)} words for good that the recipe's keywords "
                        "need; give as many as sham: {keywords: […]}"
                    )
                return recipe.model_copy(update={"keywords": self.keywords[: len(bad)], "name": None})
            case DegradeRecipe():
                shared = PlainRecipe.model_fields.keys() - {"kind", "name"}
                return PlainRecipe(**{name: getattr(recipe, name) for name in shared})
            case _:
                raise ValueError(
                    f"a {recipe.kind} recipe has no clean twin; give the control's own recipe "
                    "(adapters: [{recipe: …}])"
                )
