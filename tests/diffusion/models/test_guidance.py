"""Guiders are diffusers' own on every image of a batch; effective guidance of known and drawn predictions."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState

from harness.config.schema.evaluation import ApgGuider, CfgGuider, CfgZeroStarGuider, GuiderConfig
from harness.diffusion.models.guidance import Guidance, make_guider, step_guidance
from harness.diffusion.models.model import Model, Row, RowAdapter, SamplerSettings
from tests.diffusion.adapters.adapters import random_adapter
from tests.diffusion.models.test_sdxl import difference

FOX = Row(prompt="a red fox", negative="wrong", seed=3, guidance=5.0)
BASE_ALONE = SamplerSettings(steps=6, refiner_start=None)
WITH_REFINER = SamplerSettings(steps=10, refiner_start=0.6)
GUIDERS: list[GuiderConfig] = [
    CfgGuider(),
    CfgZeroStarGuider(),
    CfgZeroStarGuider(zero_init_steps=3),
    ApgGuider(eta=0.3, norm=2.0),
    ApgGuider(momentum=-0.5, norm=0.0),
]


class Unet(torch.nn.Module):
    """Gives one prepared output after the other."""

    def __init__(self, outputs: list[torch.Tensor]) -> None:
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (next(self.outputs),)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("interval", [None, (0.25, 0.8)])
@pytest.mark.parametrize("guider", GUIDERS, ids=lambda guider: f"{guider.kind}")
def test_each_image_of_a_batch_gets_what_diffusers_guider_gives_it_alone(
    guider: GuiderConfig, interval: tuple[float, float] | None, rescale: float
) -> None:
    if rescale and isinstance(guider, CfgZeroStarGuider):
        guider = guider.model_copy(
            update={"zero_init_steps": 0}
        )  # `check` asks for it: zeros have no contrast
    steps, images = 8, 3
    outputs = list(torch.randn(steps, 2 * images, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    row = replace(FOX, guider=guider, guidance_interval=interval)
    settings = SamplerSettings(steps=steps, refiner_start=None, guidance_rescale=rescale)
    guidance = Guidance(rows=[row] * images, settings=settings, calls=steps)
    unet = Unet(outputs)
    with guidance.acts_on_base(unet):
        found = [unet(torch.zeros(1))[0] for _ in range(steps)]
    for place in range(images):
        alone = make_guider(row, rescale)
        for step in range(steps):
            alone.set_state(step, steps, None)
            negative, positive = outputs[step][[place]], outputs[step][[images + place]]
            data = {"prompt_embeds": (positive, negative)}
            states: list[Any] = alone.prepare_inputs(data)
            for state in states:
                assert isinstance(state, BlockState)
                state.noise_pred = state.prompt_embeds
            expected = alone(states)[0]
            assert torch.allclose(found[step][[place]], expected, rtol=0, atol=1e-5)
            assert torch.equal(found[step][place], found[step][images + place])
            if interval is not None and step in (0, 7) and guider.kind != "cfg_zero_star" and not rescale:
                assert torch.equal(expected, positive), "outside the interval the prompt's row alone"


def test_every_guider_draws_another_image(tiny_model: Model) -> None:
    rows = [replace(FOX, guider=guider) for guider in GUIDERS[:4]]
    rows += [replace(FOX, guidance_interval=(0.0, 0.5)), replace(FOX, guidance_interval=(0.5, 1.0))]
    images = tiny_model.generate(rows, BASE_ALONE)
    for place, image in enumerate(images):
        assert all(difference(image.image, later.image) > 1 for later in images[place + 1 :])
    [alone] = tiny_model.generate([rows[3]], BASE_ALONE)
    assert difference(alone.image, images[3].image) <= 2


@pytest.mark.parametrize("scheduler", [None, "HeunDiscreteScheduler"])
def test_an_interval_counts_the_steps_of_base_and_refiner_together(tiny_model: Model, scheduler: Any) -> None:
    settings = replace(BASE_ALONE, scheduler=scheduler) if scheduler else WITH_REFINER
    whole, to_the_end, never = tiny_model.generate(
        [
            FOX,
            replace(FOX, guidance_interval=(0.0, 1.0)),
            replace(FOX, guidance_interval=(0.0, 1e-6)),
        ],
        settings,
    )
    [unguided] = tiny_model.generate([replace(FOX, guidance=1.0)], settings)
    assert difference(whole.image, to_the_end.image) <= 1
    assert difference(never.image, unguided.image) <= 2 and difference(whole.image, never.image) > 3


def test_the_prompt_against_itself_is_the_prompts_text_in_the_base_and_nothing_in_the_refiner(
    tiny_model: Model, tmp_path: Path
) -> None:
    lora = RowAdapter(path=random_adapter(tiny_model, tmp_path, seed=1), scale=1.0, branch="negative")
    own = replace(FOX, negative="{prompt}", adapters=(lora,))
    [image, written] = tiny_model.generate([own, replace(own, negative="a red fox")], BASE_ALONE)
    assert difference(image.image, written.image) <= 1
    [unguided] = tiny_model.generate([replace(FOX, guidance=1.0)], BASE_ALONE)
    [alike] = tiny_model.generate([replace(FOX, negative="{prompt}")], BASE_ALONE)
    assert difference(alike.image, unguided.image) <= 2, "without an adapter there is nothing to guide by"
    [both, written, empty] = tiny_model.generate(
        [own, replace(own, negative="a red fox"), replace(own, negative="")], WITH_REFINER
    )
    assert difference(both.image, written.image) > 1 and difference(both.image, empty.image) > 1


def test_plain_guidance_has_itself_and_no_orthogonal_share() -> None:
    positive, negative = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).double()
    along, share = step_guidance(negative + 2.5 * (positive - negative), positive, negative)
    assert along.tolist() == pytest.approx([2.5] * 5) and share.tolist() == pytest.approx([0] * 5, abs=1e-7)


def test_a_hand_computed_turn() -> None:
    positive, negative = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    along, share = step_guidance(torch.tensor([[3.0, 4.0]]), positive, negative)
    assert (float(along[0]), float(share[0])) == pytest.approx((1.5, 0.8))  # 4 of 5 across


def test_images_are_measured_where_asked_and_stay_the_same(tiny_model: Model, tmp_path: Path) -> None:
    path = random_adapter(tiny_model, tmp_path, seed=1)
    arms = {
        "plain": FOX,
        "negative": replace(FOX, adapters=(RowAdapter(path=path, scale=1.0, branch="negative"),)),
        "both": replace(FOX, adapters=(RowAdapter(path=path, scale=1.0, branch="both"),)),
        "hardly": replace(FOX, adapters=(RowAdapter(path=path, scale=1e-6, branch="both"),)),
        "half": replace(FOX, guidance_interval=(0.0, 0.5)),
        "unguided": replace(FOX, guidance=1.0),
    }
    rows = list(arms.values())
    without = tiny_model.generate(rows, BASE_ALONE)
    assert all(image.effective_guidance is None for image in without)
    measured = [replace(row, measured=name != "half") for name, row in arms.items()]
    images = dict(zip(arms, tiny_model.generate(measured, BASE_ALONE), strict=True))
    for one, other in zip(without, images.values(), strict=True):
        assert difference(one.image, other.image) <= 2
    assert images["plain"].effective_guidance == pytest.approx(5.0, abs=1e-3)
    assert images["plain"].orthogonal_share == pytest.approx(0.0, abs=1e-3)
    assert images["hardly"].effective_guidance == pytest.approx(5.0, abs=1e-2)
    assert images["half"].effective_guidance is None and images["unguided"].effective_guidance is None
    for name in ("negative", "both"):
        share = images[name].orthogonal_share
        assert share is not None and 0.05 < share <= 1
    [half] = tiny_model.generate([replace(arms["half"], measured=True)], BASE_ALONE)
    assert half.effective_guidance == pytest.approx(3.0, abs=1e-3), (
        "5 in one half of the steps, 1 in the other"
    )
    kinds = Counter(math.isnan(image.effective_guidance or 0) for image in images.values())
    assert kinds == {False: len(arms)}


def test_what_is_measured_is_what_the_base_alone_predicts(tiny_model: Model, tmp_path: Path) -> None:
    """One step from known latents: the base's two predictions and the arm's, each drawn by itself."""
    path = random_adapter(tiny_model, tmp_path, seed=1)
    own = replace(FOX, measured=True, adapters=(RowAdapter(path=path, scale=1.0, branch="negative"),))
    settings = SamplerSettings(steps=1, refiner_start=None)
    seen: dict[str, torch.Tensor] = {}
    unet = tiny_model._unet  # type: ignore[attr-defined]

    def keep(_module: Any, _args: Any, output: Any) -> None:
        seen["output"] = output[0].double()

    def predicted(row: Row) -> torch.Tensor:
        with unet.register_forward_hook(keep, prepend=True):
            tiny_model.generate([row], settings)
        return seen["output"]

    negative, positive = predicted(replace(FOX))[:2]
    bad, same = predicted(replace(own, measured=False))[:2]
    assert torch.allclose(same, positive, atol=1e-5)
    guided = bad + 5.0 * (same - bad)
    expected = step_guidance(*(side.flatten()[None] for side in (guided, positive, negative)))
    [image] = tiny_model.generate([own], settings)
    assert image.effective_guidance == pytest.approx(float(expected[0]), rel=1e-3)
    assert image.orthogonal_share == pytest.approx(float(expected[1]), rel=1e-3)
