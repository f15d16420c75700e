from harness.config.schema.recipe import KeywordsRecipe
from harness.diffusion.datasets.generated import keywords_rows as rows
from harness.diffusion.datasets.generated import prompts

RECIPE = KeywordsRecipe(keywords=("bad hands", "blurry", "ugly"), guidance=(8, 13))


def test_each_keyword_in_turn_is_weighted_up() -> None:
    assert prompts(RECIPE) == [
        "(bad hands)++++, blurry, ugly",
        "bad hands, (blurry)++++, ugly",
        "bad hands, blurry, (ugly)++++",
    ]


def test_the_emphasis_is_the_number_of_signs() -> None:
    assert prompts(KeywordsRecipe(keywords=("a", "b"), emphasis=1)) == ["(a)+, b", "a, (b)+"]
    assert prompts(KeywordsRecipe(keywords=("a", "b"), emphasis=0)) == ["a, b", "a, b"]


def test_at_every_guidance_each_keyword_is_drawn_with_a_seed_of_its_own_and_no_negative_prompt() -> None:
    made = rows(RECIPE)
    assert [(row.prompt, row.guidance) for row in made] == [
        (prompt, guidance) for guidance in (8.0, 13.0) for prompt in prompts(RECIPE)
    ]
    assert len({row.seed for row in made}) == len(made)
    assert {row.negative for row in made} == {""}
    assert all(row.adapters == () for row in made)
