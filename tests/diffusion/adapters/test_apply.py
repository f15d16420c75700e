"""Row-wise adapters against what they must equal: stock PEFT pipelines, separate UNets, one row at a time."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from harness.config.schema.adapter import LowRankAdapter
from harness.diffusion.adapters.adapter import LowRank, LowRankLayer
from harness.diffusion.adapters.apply import acting, acting_on_all
from harness.diffusion.adapters.files import read_adapter
from harness.diffusion.models.model import Model, Row, RowAdapter, SamplerSettings
from harness.errors import ModelError
from tests.diffusion.adapters.adapters import products, random_adapter
from tests.diffusion.models.test_sdxl import difference, seeded, stock

BASE_ALONE = SamplerSettings(steps=6, refiner_start=None)
FOX = Row(prompt="a red fox", negative="wrong", seed=3, guidance=5.0)


@pytest.fixture(scope="module")
def one(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(tiny_model, tmp_path_factory.mktemp("one"), seed=1)


@pytest.fixture(scope="module")
def other(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(tiny_model, tmp_path_factory.mktemp("other"), seed=2, rank=2, alpha=1.0)


KINDS = {
    "lora": LowRankAdapter(rank=4, alpha=8.0),
    "rslora": LowRankAdapter(kind="rslora", rank=4, alpha=3.0),
    "dora": LowRankAdapter(kind="dora", rank=4, alpha=8.0),
    "convolutions": LowRankAdapter(rank=2, alpha=4.0, targets=("attention", "convolutions", "feed_forward")),
    "dora_convolutions": LowRankAdapter(
        kind="dora", rank=2, targets=("convolutions",), blocks=("mid_block", "up_blocks.1")
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def any_kind(
    request: pytest.FixtureRequest, tiny_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return random_adapter(tiny_model, folder, seed=1, adapter=KINDS[request.param])


@pytest.fixture
def unet(tiny_folder: Path) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet")
    return unet.requires_grad_(False).eval()


def on(path: Path, branch, scale: float = 1.0) -> RowAdapter:
    return RowAdapter(path=path, scale=scale, branch=branch)


def inputs(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(rows, 8, 8, 8, generator=generator),
        "timestep": torch.tensor([500] * rows),
        "encoder_hidden_states": torch.randn(rows, 77, 40, generator=generator),
        "text_embeds": torch.randn(rows, 20, generator=generator),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * rows),
    }


def forward(unet: UNet2DConditionModel, given: dict[str, torch.Tensor]) -> torch.Tensor:
    added = {name: given[name] for name in ("text_embeds", "time_ids")}
    return unet(
        given["sample"], given["timestep"], given["encoder_hidden_states"], added_cond_kwargs=added
    ).sample


def lora(path: Path) -> LowRank:
    return read_adapter(path, device=torch.device("cpu"), dtype=torch.float32).unet


def with_stock_adapter(unet: UNet2DConditionModel, folder: Path) -> UNet2DConditionModel:
    state, _, metadata = StableDiffusionXLPipeline.lora_state_dict(folder, return_lora_metadata=True)
    unet.load_lora_adapter(state, prefix="unet", metadata=metadata)
    return unet


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_the_unets_output_is_that_of_stock_peft(
    tiny_folder: Path, unet: UNet2DConditionModel, any_kind: Path, scale: float
):
    given = inputs(3)
    adapted = with_stock_adapter(
        UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet"), any_kind
    )
    adapted.set_adapters(["default_0"], [scale])
    with torch.no_grad():
        plain, expected = forward(unet, given), forward(adapted, given)
        with acting(unet, [[(lora(any_kind), scale)]] * 3):
            drawn = forward(unet, given)
        with acting_on_all(dict(unet.named_modules()), [(lora(any_kind), scale)]):
            on_all = forward(unet, given)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(on_all, expected, rtol=1e-4, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-3


def test_a_batch_of_two_branches_is_two_unets(tiny_folder: Path, unet: UNet2DConditionModel, any_kind: Path):
    """Negative rows as by a UNet with the adapter merged into its weights, positive ones by the plain one."""
    merged = with_stock_adapter(UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet"), any_kind)
    merged.fuse_lora()
    merged.unload_lora()
    given = inputs(4)
    with torch.no_grad():
        expected, plain = forward(merged, given)[:2], forward(unet, given)
        with acting(unet, [[(lora(any_kind), 1.0)]] * 2 + [[], []]):
            drawn = forward(unet, given)
        after = forward(unet, given)
    torch.testing.assert_close(drawn[:2], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(drawn[2:], plain[2:])
    assert torch.equal(after, plain)


def test_each_row_has_its_own_scale(unet: UNet2DConditionModel, any_kind: Path):
    given, adapter = inputs(2), lora(any_kind)
    with torch.no_grad(), acting(unet, [[(adapter, 0.5)], [(adapter, 2.0)]]):
        together = forward(unet, given)
    for row, scale in enumerate([0.5, 2.0]):
        single = {name: tensor[row : row + 1] for name, tensor in given.items()}
        with torch.no_grad(), acting(unet, [[(adapter, scale)]]):
            torch.testing.assert_close(together[row : row + 1], forward(unet, single), rtol=1e-4, atol=1e-5)


def test_the_order_of_several_adapters_means_nothing(unet: UNet2DConditionModel, any_kind: Path, other: Path):
    given, both = inputs(1), [(lora(any_kind), 1.0), (lora(other), 0.5)]
    drawn = []
    for adapters in (both, both[::-1]):
        with torch.no_grad(), acting(unet, [adapters]):
            drawn.append(forward(unet, given))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
def test_on_both_branches_it_is_a_stock_pipeline_with_the_adapter(
    tiny_model: Model, tiny_folder: Path, one: Path, scale: float
):
    pipeline = stock(tiny_folder)
    pipeline.load_lora_weights(one, adapter_name="one")
    pipeline.set_adapters(["one"], [scale])
    expected = pipeline(
        FOX.prompt,
        negative_prompt=FOX.negative,
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=seeded(3),
    ).images[0]
    [drawn] = tiny_model.generate([replace(FOX, adapters=(on(one, "both", scale),))], BASE_ALONE)
    [plain] = tiny_model.generate([FOX], BASE_ALONE)
    assert difference(drawn.image, expected) <= 2
    assert difference(drawn.image, plain.image) > 10


def test_several_adapters_in_one_row_are_stock_multi_adapters(
    tiny_model: Model, tiny_folder: Path, one: Path, other: Path
):
    pipeline = stock(tiny_folder)
    pipeline.load_lora_weights(one, adapter_name="one")
    pipeline.load_lora_weights(other, adapter_name="other")
    pipeline.set_adapters(["one", "other"], [0.5, 2.0])
    expected = pipeline(
        FOX.prompt,
        negative_prompt=FOX.negative,
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=seeded(3),
    ).images[0]
    row = replace(FOX, adapters=(on(one, "both", 0.5), on(other, "both", 2.0)))
    assert difference(tiny_model.generate([row], BASE_ALONE)[0].image, expected) <= 2


@pytest.mark.parametrize("branch", ["negative", "positive"])
def test_on_one_branch_it_is_two_separate_unets(
    tiny_model: Model, tiny_folder: Path, unet: UNet2DConditionModel, one: Path, branch: str
):
    """Guidance written out: the negative prompt through one UNet, the positive through another."""
    adapted = with_stock_adapter(UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet"), one)
    negative_unet, positive_unet = (adapted, unet) if branch == "negative" else (unet, adapted)
    pipeline = stock(tiny_folder)
    embeds, negative_embeds, pooled, negative_pooled = pipeline.encode_prompt(
        FOX.prompt, negative_prompt=FOX.negative
    )
    scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(6)
    latents = torch.randn(1, 8, 8, 8, generator=seeded(3)) * scheduler.init_noise_sigma
    time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.scale_model_input(latents, t)
            low, high = (
                net(x, t, words, added_cond_kwargs={"text_embeds": pool, "time_ids": time_ids}).sample
                for net, words, pool in [
                    (negative_unet, negative_embeds, negative_pooled),
                    (positive_unet, embeds, pooled),
                ]
            )
            latents = scheduler.step(low + 5.0 * (high - low), t, latents).prev_sample
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    [expected] = pipeline.image_processor.postprocess(decoded)
    row = replace(FOX, adapters=(on(one, branch),))
    drawn, plain = (image.image for image in tiny_model.generate([row, FOX], BASE_ALONE))
    assert difference(drawn, expected) <= 2
    assert difference(drawn, plain) > 10


def test_a_batch_of_mixed_rows_is_one_row_at_a_time(tiny_model: Model, one: Path, other: Path):
    rows = [
        FOX,
        replace(FOX, adapters=(on(one, "negative"),)),
        replace(FOX, adapters=(on(one, "positive", 0.5), on(other, "negative", 2.0)), seed=4),
        replace(FOX, adapters=(on(other, "both"),), prompt="a blue cat"),
        replace(FOX, seed=5),
        replace(FOX, adapters=(on(one, "both"), on(one, "negative", -1.0)), seed=6),
    ]
    together = tiny_model.generate(rows, BASE_ALONE)
    for row, image in zip(rows, together, strict=True):
        assert (
            difference(image.image, tiny_model.generate([row], BASE_ALONE)[0].image) <= 4
        )  # rounding, by processor; another adapter differs by tens
    assert difference(together[0].image, together[1].image) > 10


def test_rows_without_adapters_are_untouched_in_a_mixed_batch(unet: UNet2DConditionModel, one: Path):
    given = inputs(3)
    with torch.no_grad():
        plain = forward(unet, given)
        with acting(unet, [[], [(lora(one), 1.0)], []]):
            mixed = forward(unet, given)
        after = forward(unet, given)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert (mixed[1] - plain[1]).abs().max() > 1e-3
    assert torch.equal(after, plain)


def test_detaching_restores_the_control_exactly(tiny_model: Model, one: Path):
    [before] = tiny_model.generate([FOX], BASE_ALONE)
    tiny_model.generate([replace(FOX, adapters=(on(one, "both"),))], BASE_ALONE)
    with pytest.raises(ModelError):
        tiny_model.generate([replace(FOX, adapters=(on(one, "both"), on(one.parent, "both")))], BASE_ALONE)
    [after] = tiny_model.generate([FOX], BASE_ALONE)
    assert before.image.tobytes() == after.image.tobytes()
    assert not any(module._forward_hooks for module in tiny_model._unet.modules())  # type: ignore[attr-defined]


def test_scale_zero_is_no_adapter(tiny_model: Model, one: Path):
    [zero] = tiny_model.generate([replace(FOX, adapters=(on(one, "both", 0.0),))], BASE_ALONE)
    [plain] = tiny_model.generate([FOX], BASE_ALONE)
    assert zero.image.tobytes() == plain.image.tobytes()


def test_the_adapter_acts_in_the_base_alone(tiny_model: Model, one: Path):
    settings = SamplerSettings(steps=10, refiner_start=0.5)
    drawn, plain = tiny_model.generate([replace(FOX, adapters=(on(one, "negative"),)), FOX], settings)
    assert difference(drawn.image, plain.image) > 10


def test_gradients_are_those_of_one_adapter_at_a_time(unet: UNet2DConditionModel, one: Path, other: Path):
    given = inputs(2)

    def trainable(path: Path) -> tuple[Mapping[str, LowRankLayer], list[torch.Tensor]]:
        layers = {
            name: replace(
                layer, down=layer.down.clone().requires_grad_(), up=layer.up.clone().requires_grad_()
            )
            for name, layer in products(lora(path)).items()
        }
        return layers, [matrix for layer in layers.values() for matrix in (layer.down, layer.up)]

    packed, alone = [[trainable(path) for path in (one, other)] for _ in range(2)]
    with acting(unet, [[(packed[0][0], 1.0)], [(packed[1][0], 1.0)]]):
        forward(unet, given).square().sum().backward()
    for row, (adapter, leaves) in enumerate(alone):
        single = {name: tensor[row : row + 1] for name, tensor in given.items()}
        with acting(unet, [[(adapter, 1.0)]]):
            forward(unet, single).square().sum().backward()
        for leaf, same in zip(leaves, packed[row][1], strict=True):
            assert leaf.grad is not None and leaf.grad.abs().max() > 0
            torch.testing.assert_close(same.grad, leaf.grad, rtol=1e-3, atol=1e-5)


def test_a_rewritten_file_is_read_again(tiny_model: Model, tmp_path: Path):
    row = replace(FOX, adapters=(on(tmp_path, "both"),))
    random_adapter(tiny_model, tmp_path, seed=1)
    [first] = tiny_model.generate([row], BASE_ALONE)
    random_adapter(tiny_model, tmp_path, seed=2)
    [second] = tiny_model.generate([row], BASE_ALONE)
    assert difference(first.image, second.image) > 0


def test_without_guidance_a_negative_adapter_cannot_act(tiny_model: Model, one: Path):
    unguided = replace(FOX, guidance=1.0)
    with pytest.raises(ModelError, match="branch negative cannot act"):
        tiny_model.generate([replace(unguided, adapters=(on(one, "negative"),))], BASE_ALONE)
    drawn, plain = tiny_model.generate([replace(unguided, adapters=(on(one, "both"),)), unguided], BASE_ALONE)
    assert difference(drawn.image, plain.image) > 0


def test_an_adapter_of_another_model_is_refused(unet: UNet2DConditionModel, one: Path):
    layer = next(iter(lora(one).values()))
    with pytest.raises(ModelError, match=r"mid_block.nothing.*trained on another model"):
        acting(unet, [[({"mid_block.nothing": layer}, 1.0)]]).__enter__()
    with pytest.raises(ModelError, match=r"conv_in.*trained on another model"):
        acting(unet, [[({"conv_in": layer}, 1.0)]]).__enter__()
    assert not any(module._forward_hooks for module in unet.modules())


def test_another_number_of_rows_than_described(unet: UNet2DConditionModel, one: Path):
    with pytest.raises(AssertionError, match="3 rows in the batch"), acting(unet, [[(lora(one), 1.0)]]):
        forward(unet, inputs(3))
