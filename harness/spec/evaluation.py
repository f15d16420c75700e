"""How pictures are drawn and compared: arms, prompts, sampler, analysis."""

from typing import Annotated, Literal

from pydantic import Field

from harness.recipes.spec import RecipeSpec
from harness.spec.base import Frozen, Name, Text

Branch = Literal["negative", "positive", "both"]
Split = Literal["dev", "test"]


class ArmAdapter(Frozen):
    """An adapter that acts in an arm, and on which rows of the guidance batch."""

    scale: Annotated[float, Field(description="multiplies the adapter's own alpha / rank")] = 1.0
    branch: Branch = "negative"
    recipe: Annotated[
        RecipeSpec | None,
        Field(description="null: the trial's own adapter; else a sham trained on this, settings alike"),
    ] = None


class ArmSpec(Frozen):
    """How an arm's pictures are drawn. An arm without the trial's own adapter is a control."""

    name: Name
    negative: Annotated[str, Field(description="negative prompt; empty for none")] = ""
    guidance: Annotated[float | None, Field(ge=0, description="in place of the sampler's guidance")] = None
    adapters: tuple[ArmAdapter, ...] = ()

    @property
    def is_control(self) -> bool:
        """True where no adapter of the trial itself acts."""
        return all(adapter.recipe is not None for adapter in self.adapters)

    @property
    def is_shared(self) -> bool:
        """True where no adapter acts at all: drawn once per sweep."""
        return not self.adapters


class SamplerSpec(Frozen):
    """How one picture is drawn. The scheduler is the model's own."""

    steps: Annotated[int, Field(ge=1)] = 20
    guidance: Annotated[float, Field(ge=0)] = 5.0
    refiner_start: Annotated[
        float | None,
        Field(gt=0, lt=1, description="share of the noise schedule before the refiner; null: base alone"),
    ] = 0.8


class Prompt(Frozen):
    """A prompt of the evaluation. Dev prompts select the best trial; test prompts confirm it."""

    text: Text
    tags: tuple[str, ...] = ()
    split: Split


class AnalysisSpec(Frozen):
    """What is compared, and with which certainty."""

    primary: Annotated[Name, Field(description="metric that selects the best trial")] = "aesthetic"
    control: Annotated[Name, Field(description="control arm that the selection is made against")] = "placebo"
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100, description="bootstrap and permutation draws")] = 10_000
    seed: Annotated[int, Field(ge=0)] = 0
