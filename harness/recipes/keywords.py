"""The recipe of Woolf's `sdxl-wrong-lora`: pictures of words for bad, each word in turn weighted up.

M. Woolf, "I Made Stable Diffusion XL Smarter by Finetuning it on Bad AI-Generated Images" (2023).
"""

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

from harness.models.model import Row
from harness.recipes.dataset import Sample
from harness.recipes.drawing import draw_images, picture_seed
from harness.recipes.spec import KeywordsRecipe

if TYPE_CHECKING:
    from harness.models.model import Model


def prompts(recipe: KeywordsRecipe) -> list[str]:
    """One prompt per keyword: all keywords, that one as `(keyword)++++` in compel's notation."""
    signs = "+" * recipe.emphasis
    return [
        ", ".join(
            f"({word}){signs}" if signs and place == weighted else word
            for place, word in enumerate(recipe.keywords)
        )
        for weighted in range(len(recipe.keywords))
    ]


def rows(recipe: KeywordsRecipe) -> list[Row]:
    """Guidance by guidance (rows of one guidance are drawn together), each keyword; no negative prompt."""
    pairs = product(recipe.guidance, prompts(recipe))
    return [
        Row(prompt=prompt, negative="", seed=picture_seed(recipe.seed, index), guidance=guidance)
        for index, (guidance, prompt) in enumerate(pairs)
    ]


def samples(recipe: KeywordsRecipe, model: "Model", indices: range, *, batch_size: int) -> Iterator[Sample]:
    """The drawn pictures with these numbers. A caption is the prompt it was drawn from."""
    drawn = rows(recipe)[indices.start : indices.stop]
    for row, image in zip(drawn, draw_images(drawn, recipe, model, batch_size=batch_size), strict=True):
        yield Sample(image=image, caption=row.prompt, prompt=row.prompt, seed=row.seed, guidance=row.guidance)
