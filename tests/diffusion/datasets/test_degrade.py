from harness.config.schema.recipe import DegradeRecipe
from harness.diffusion.datasets.generated import degradation_of


def test_every_prompt_meets_every_degradation() -> None:
    recipe = DegradeRecipe(prompts=("a", "b", "c"), count=9, degradations=("blur", "noise", "jpeg"))
    met = {(recipe.prompts[index % 3], degradation_of(recipe, index)) for index in range(9)}
    assert len(met) == 9


def test_degradations_take_turns_where_there_is_one_prompt() -> None:
    recipe = DegradeRecipe(prompts=("a",), count=4, degradations=("blur", "noise"))
    assert [degradation_of(recipe, index) for index in range(4)] == ["blur", "noise", "blur", "noise"]
