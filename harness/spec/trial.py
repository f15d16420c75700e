"""One point of a sweep: which model, from which bad images, which adapter, trained how."""

import math
from typing import Annotated, Literal

from pydantic import Field

from harness.models.spec import ModelSpec
from harness.recipes.spec import RecipeSpec
from harness.spec.base import Frozen, Text


class LoraAdapter(Frozen):
    """LoRA (Hu et al. 2021) on the UNet's attention projections: W + (alpha / rank) B A.

    `alpha: rank` keeps the scale at 1, so a rank axis also changes the effective learning rate;
    `sqrt_rank` is rsLoRA's scale (Kalajdzievski 2023); a number is taken as it is.
    """

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] | Literal["rank", "sqrt_rank"] = "rank"

    @property
    def alpha_value(self) -> float:
        """The number that the mode stands for: PEFT's `lora_alpha`; the scale is `alpha_value / rank`."""
        match self.alpha:
            case "rank":
                return float(self.rank)
            case "sqrt_rank":
                return math.sqrt(self.rank)
            case number:
                return float(number)


AdapterSpec = LoraAdapter


class TrainingSpec(Frozen):
    """DreamBooth training on one prompt.

    The schedule is constant after a warm-up, so that a snapshot of a longer run equals a shorter run and
    trials that differ in `steps` alone share one run.
    """

    prompt: Text = "wrong"
    steps: Annotated[int, Field(ge=1)] = 200
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1, description="pictures per forward pass")] = 4
    gradient_accumulation: Annotated[int, Field(ge=1, description="forward passes per optimizer step")] = 1
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    seed: Annotated[int, Field(ge=0)] = 0


class TrialSpec(Frozen):
    """Everything that decides an adapter's bytes."""

    model: ModelSpec
    recipe: RecipeSpec
    adapter: AdapterSpec
    training: TrainingSpec
