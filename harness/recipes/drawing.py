"""What the recipes share that draw their pictures with the model itself."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from harness.models.model import DrawSettings, Row
from harness.recipes.spec import Drawn

if TYPE_CHECKING:
    from PIL.Image import Image

    from harness.models.model import Model


def picture_seed(recipe_seed: int, index: int) -> int:
    """Seed of the recipe's picture number `index`: the first 32 bits of NumPy's SeedSequence([seed, index]).

    A hash, not a sum: neighbouring recipe seeds share no pictures, and training pictures do not start
    from the latents of the evaluation's small seeds.
    """
    return int(np.random.SeedSequence([recipe_seed, index]).generate_state(1)[0])


def draw_images(rows: Sequence[Row], recipe: Drawn, model: "Model", *, batch_size: int) -> Iterator["Image"]:
    """The rows' pictures in their order, RGB, drawn `batch_size` at a time."""
    settings = DrawSettings(steps=recipe.steps, refiner_start=recipe.refiner_start)
    remaining = iter(rows)
    while batch := list(islice(remaining, batch_size)):
        for picture in model.draw(batch, settings):
            yield picture.image.convert("RGB")
