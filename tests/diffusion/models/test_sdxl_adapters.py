"""Adapters through `Sdxl.draw`: several on a row, each on its branch, merged, and in the text encoders."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from harness.config.schema.adapter import LowRankAdapter, TextualInversion
from harness.config.schema.evaluation import Branch, MergeConfig
from harness.diffusion.models.model import Model, Row, RowAdapter, SamplerSettings
from harness.errors import ModelError
from tests.diffusion.adapters.adapters import random_adapter
from tests.diffusion.models.test_sdxl import difference

SETTINGS = SamplerSettings(steps=4, refiner_start=None)
FOX = Row(prompt="a red fox", negative="wrong", seed=3, guidance=3.0)


@pytest.fixture(scope="module")
def folders(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("adapters")
    return tuple(random_adapter(tiny_model, base / str(seed), seed=seed) for seed in (1, 2))  # type: ignore[return-value]


def on(path: Path, branch: Branch = "both", scale: float = 1.0) -> RowAdapter:
    return RowAdapter(path=path, scale=scale, branch=branch)


def drawn(model: Model, *adapters: RowAdapter, **changes: object) -> Image.Image:
    return model.generate([replace(FOX, adapters=adapters, **changes)], SETTINGS)[0].image  # type: ignore[arg-type]


def test_each_adapter_acts_on_its_branch(tiny_model: Model, folders: tuple[Path, Path]):
    one, other = folders
    whole = drawn(tiny_model, on(one, "negative"), on(one, "positive"))
    assert difference(whole, drawn(tiny_model, on(one))) <= 1
    arms = [(), (on(one, "negative"),), (on(one, "positive"),), (on(one),), (on(one), on(other, "negative"))]
    rows = [replace(FOX, adapters=adapters) for adapters in arms]
    together = tiny_model.generate(rows, SETTINGS)  # all arms in one batch
    for row, image in zip(rows, together, strict=True):
        [alone] = tiny_model.generate([row], SETTINGS)
        assert difference(image.image, alone.image) <= 2
    for place, image in enumerate(together):
        assert all(difference(image.image, later.image) > 3 for later in together[place + 1 :])


def test_merged_linearly_is_the_sum_of_the_parts(tiny_model: Model, folders: tuple[Path, Path]):
    """PEFT's linear merge adds A and B each, weighted by √scale: exact for one adapter with itself."""
    one, other = folders
    linear = MergeConfig(method="linear")
    twice = drawn(tiny_model, on(one, scale=0.25), on(one, scale=0.25), merge=linear)
    assert difference(twice, drawn(tiny_model, on(one))) <= 1  # (½ + ½) A and (½ + ½) B
    mixed = drawn(tiny_model, on(one), on(other), merge=linear)
    assert difference(mixed, drawn(tiny_model, on(one), on(other))) > 3
    dare = MergeConfig(method="dare", density=0.5, seed=0)
    pair = (on(one, "negative"), on(other, "negative"))
    first, second = drawn(tiny_model, *pair, merge=dare), drawn(tiny_model, *pair, merge=dare)
    assert first.tobytes() == second.tobytes()
    assert difference(first, drawn(tiny_model, *pair, merge=dare.model_copy(update={"seed": 1}))) > 0


@pytest.mark.parametrize(
    "adapter",
    [LowRankAdapter(rank=2, text_encoders=True), TextualInversion(word="wrong", vectors=2)],
    ids=["text_encoders", "textual_inversion"],
)
def test_what_acts_on_words_acts_on_its_branch_alone(
    tiny_model: Model, tmp_path: Path, adapter: LowRankAdapter | TextualInversion
):
    path = random_adapter(tiny_model, tmp_path, seed=1, adapter=adapter)
    words = {"prompt": "a wrong fox", "negative": "wrong"}
    plain, negative, positive = (
        drawn(tiny_model, *adapters, **words)
        for adapters in ((), (on(path, "negative"),), (on(path, "positive"),))
    )
    assert difference(plain, negative) > 3 and difference(plain, positive) > 3
    assert difference(negative, positive) > 3
    if isinstance(adapter, TextualInversion):  # it acts on its word and on nothing else
        without = {"prompt": "a fox", "negative": "wrong"}
        assert (
            drawn(tiny_model, on(path, "positive"), **without).tobytes()
            == drawn(tiny_model, **without).tobytes()
        )


def test_an_adapter_is_read_again_when_its_file_changes(tiny_model: Model, tmp_path: Path):
    path = random_adapter(tiny_model, tmp_path, seed=1)
    before = drawn(tiny_model, on(path))
    random_adapter(tiny_model, tmp_path, seed=2)
    assert difference(drawn(tiny_model, on(path)), before) > 3
    file = next(path.glob("*.safetensors"))
    assert difference(drawn(tiny_model, on(file)), drawn(tiny_model, on(path))) == 0


def test_without_guidance_there_is_no_negative_branch(tiny_model: Model, folders: tuple[Path, Path]):
    with pytest.raises(ModelError, match="no negative rows are computed"):
        drawn(tiny_model, on(folders[0], "negative"), guidance=1.0)
