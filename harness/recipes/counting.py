"""How many pictures a recipe makes, known before any is made."""

from harness.recipes.spec import RecipeSpec


def picture_count(recipe: RecipeSpec) -> int:
    """How many pictures a recipe has. Looks into a folder recipe's folder if need be."""
    if recipe.count is not None:
        return recipe.count
    from harness.recipes.folder import scan

    return scan(recipe.path).pictures
