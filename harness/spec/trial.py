"""One point of a sweep: which model, from which bad images, which adapter, trained how."""

from pydantic import model_validator

from harness.models.spec import ModelSpec
from harness.recipes.spec import FolderRecipe, RecipeSpec
from harness.spec.adapter import AdapterSpec, LowRankAdapter, TextualInversion
from harness.spec.base import Frozen
from harness.spec.training import CAPTION, TrainingSpec


class TrialSpec(Frozen):
    """Everything that decides an adapter's bytes. What a combination would not use is an error."""

    model: ModelSpec
    recipe: RecipeSpec
    adapter: AdapterSpec
    training: TrainingSpec

    @model_validator(mode="after")
    def _all_of_it_is_used(self) -> "TrialSpec":
        match self.adapter:
            case TextualInversion(word=word):
                self._textual_inversion(word)
            case LowRankAdapter(text_encoders=False) if self.training.text_encoder_learning_rate is not None:
                raise ValueError(
                    "training.text_encoder_learning_rate is not used: set adapter.text_encoders: true, "
                    "or remove it"
                )
        if self.training.crop == "random" and not isinstance(self.recipe, FolderRecipe):
            raise ValueError(
                f"training.crop: random has no room in a {self.recipe.kind} recipe's square pictures; "
                "use a folder recipe, or crop: center"
            )
        return self

    def _textual_inversion(self, word: str) -> None:
        unused = [
            name
            for name, used in (
                ("lora_plus_ratio", self.training.lora_plus_ratio == 1),
                ("text_encoder_learning_rate", self.training.text_encoder_learning_rate is None),
            )
            if not used
        ]
        if unused:
            raise ValueError(f"training.{unused[0]} is not used by textual_inversion; remove it")
        if word not in self.training.prompt.lower().split() and CAPTION not in self.training.prompt:
            raise ValueError(f"training.prompt {self.training.prompt!r} must hold adapter.word {word!r}")
