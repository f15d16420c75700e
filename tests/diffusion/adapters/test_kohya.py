"""kohya's layout: SDXL's own names, held against diffusers' converter, and the image it draws there."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors.torch import save_file

from harness.config.weights.names import PARTS
from harness.diffusion.adapters.files import read_adapter
from harness.diffusion.adapters.kohya import State, to_kohya
from harness.errors import ModelError
from tests.diffusion.adapters.narrow import SHAPE, narrow_sdxl

LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
RANK = 4


@pytest.fixture(scope="module")
def sdxl_unet() -> UNet2DConditionModel:
    """SDXL's own UNet without its numbers."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            **SHAPE,
            block_out_channels=(320, 640, 1280),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def lora_of(unet: UNet2DConditionModel, *, rank: int = RANK, dora: bool = False) -> State:
    """A LoRA on everything the harness can train in a UNet, random in every number."""
    generator = torch.Generator().manual_seed(rank)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    state: State = {}
    for name, module in unet.named_modules():
        if not name.endswith(tuple(f".{end}" for end in LINEAR + CONVOLUTIONS)):
            continue
        out, width, *kernel = module.weight.shape
        ones = [1] * len(kernel)
        state[f"unet.{name}.lora_A.weight"] = noise(rank, width, *kernel)
        state[f"unet.{name}.lora_B.weight"] = noise(out, rank, *ones)
        if dora:
            magnitude = noise(out).abs() + 1
            state[f"unet.{name}.lora_magnitude_vector"] = (
                magnitude.reshape(1, out, 1, 1) if kernel else magnitude
            )
    return state


def text_lora(pipeline: StableDiffusionXLPipeline) -> State:
    generator = torch.Generator().manual_seed(1)
    return {
        f"{part}.{name}.lora_{side}.weight": torch.randn(shape, generator=generator) * 0.1
        for part in ("text_encoder", "text_encoder_2")
        for name, module in getattr(pipeline, part).named_modules()
        if name.endswith(tuple(f".{end}" for end in TEXT))
        for side, shape in (("A", (RANK, module.in_features)), ("B", (module.out_features, RANK)))
    }


def assert_equal(left: State, right: State) -> None:
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert torch.equal(tensor, right[key]), key


def from_kohya(state: State, folder: Path) -> State:
    """What is read of a file in kohya's layout, under diffusers' names, with an alpha if scale is not 1."""
    save_file(state, folder / "kohya.safetensors")
    adapter = read_adapter(folder / "kohya.safetensors", device=torch.device("cpu"), dtype=torch.float32)
    found: State = {}
    for part in PARTS:
        for name, layer in getattr(adapter, part).items():
            module = f"{part}.{name}" if part == "unet" else f"{part}.text_model.{name}"
            found |= {f"{module}.lora_A.weight": layer.down, f"{module}.lora_B.weight": layer.up}
            if layer.scale != 1:
                found[f"{module}.alpha"] = torch.tensor(layer.scale * len(layer.down))
            if layer.magnitude_O is not None:
                shape = (1, -1, 1, 1) if layer.up.ndim == 4 else (-1,)
                found[f"{module}.lora_magnitude_vector"] = layer.magnitude_O.reshape(shape)
    return found


def read_by_diffusers(state: State, unet: UNet2DConditionModel) -> tuple[State, dict[str, float]]:
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(state), unet.config)
    converted, alphas = _convert_non_diffusers_lora_to_diffusers(mapped)
    return convert_unet_state_dict_to_peft(converted), alphas


def test_names_are_kohyas() -> None:
    """Spot checks against files that kohya's scripts write."""
    ours = [
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj",
        "unet.down_blocks.0.resnets.1.conv1",
        "unet.down_blocks.1.downsamplers.0.conv",
        "unet.mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0",
        "unet.mid_block.resnets.1.conv2",
        "unet.up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_v",
        "unet.up_blocks.1.upsamplers.0.conv",
        "unet.up_blocks.2.resnets.2.conv_shortcut",
        "text_encoder.encoder.layers.11.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj",
    ]
    theirs = [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_input_blocks_2_0_in_layers_2",
        "lora_unet_input_blocks_6_0_op",
        "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_middle_block_2_out_layers_3",
        "lora_unet_output_blocks_2_1_transformer_blocks_0_attn2_to_v",
        "lora_unet_output_blocks_5_2_conv",
        "lora_unet_output_blocks_8_0_skip_connection",
        "lora_te1_text_model_encoder_layers_11_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
    ]
    for our, their in zip(ours, theirs, strict=True):
        state = {f"{our}.lora_A.weight": torch.ones(2, 3)}
        assert list(to_kohya(state, alpha=2)) == [f"{their}.alpha", f"{their}.lora_down.weight"]


@pytest.mark.parametrize("blocks", ["sgm", "diffusers"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_every_module_of_sdxl_there_and_back(
    sdxl_unet: UNet2DConditionModel, tmp_path: Path, blocks: Any, dora: bool
) -> None:
    state = lora_of(sdxl_unet, rank=1, dora=dora)
    kohya = to_kohya(state, alpha=1, blocks=blocks)
    assert len(kohya) == len(state) * (4 if dora else 3) // (3 if dora else 2)  # an alpha for each module
    assert_equal(from_kohya(kohya, tmp_path), state)


@pytest.mark.parametrize("blocks", ["sgm", "diffusers"])
def test_diffusers_converter_reads_every_module_of_sdxl(sdxl_unet: UNet2DConditionModel, blocks: Any) -> None:
    state = lora_of(sdxl_unet, rank=1)
    found, alphas = read_by_diffusers(to_kohya(state, alpha=0.5, blocks=blocks), sdxl_unet)
    assert_equal(found, state)
    assert set(alphas.values()) == {0.5}


def test_an_alpha_is_kept_where_it_is_not_the_rank(tmp_path: Path) -> None:
    ours = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    state = {f"{ours}.lora_A.weight": torch.ones(4, 3), f"{ours}.lora_B.weight": torch.ones(5, 4)}
    assert_equal(from_kohya(to_kohya(state, alpha=4), tmp_path), state)
    assert_equal(from_kohya(to_kohya(state, alpha=1), tmp_path), state | {f"{ours}.alpha": torch.tensor(1.0)})


def test_dora_over_inputs_is_refused(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    state = {
        f"{name}.lora_down.weight": torch.zeros(2, 6),
        f"{name}.lora_up.weight": torch.zeros(5, 2),
        f"{name}.dora_scale": torch.ones(1, 6),
    }
    with pytest.raises(ModelError, match="one magnitude per output"):
        from_kohya(state, tmp_path)


def test_another_unet_has_no_sgm_names() -> None:
    state = {"unet.down_blocks.3.attentions.0.proj_in.lora_A.weight": torch.ones(2, 3)}
    with pytest.raises(ModelError, match=r"down_blocks\.3"):
        to_kohya(state, alpha=2)
    assert "lora_unet_down_blocks_3_attentions_0_proj_in.alpha" in to_kohya(
        state, alpha=2, blocks="diffusers"
    )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    """A stock pipeline whose UNet has SDXL's shape, narrow."""
    folder = narrow_sdxl(tmp_path_factory.mktemp("layouts") / "base")
    loaded = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def generate(pipeline: StableDiffusionXLPipeline) -> torch.Tensor:
    with torch.inference_mode():
        return pipeline(
            "a red fox", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)
        ).images


@pytest.fixture
def fresh(pipeline: StableDiffusionXLPipeline) -> Iterator[StableDiffusionXLPipeline]:
    yield pipeline
    pipeline.unload_lora_weights()


# Powers of two alone, so that multiplying B beforehand rounds nothing: a random network is chaotic.
@pytest.mark.parametrize(
    "alpha", [RANK, 1, math.sqrt(RANK) * RANK], ids=["alpha: rank", "alpha: 1", "rslora"]
)
def test_stock_pipeline_draws_the_same_from_both_files(
    fresh: StableDiffusionXLPipeline, tmp_path: Path, alpha: float
) -> None:
    state = {**lora_of(fresh.unet), **text_lora(fresh)}
    # A file in diffusers' layout without a header has scale 1.
    folded = {key: tensor * (alpha / RANK if ".lora_B." in key else 1) for key, tensor in state.items()}
    save_file(folded, tmp_path / "diffusers.safetensors")
    save_file(to_kohya(state, alpha=alpha), tmp_path / "kohya.safetensors")
    plain = generate(fresh)
    fresh.load_lora_weights(tmp_path, weight_name="diffusers.safetensors")
    expected = generate(fresh)
    fresh.unload_lora_weights()
    assert (expected - plain).abs().max() > 0.02
    fresh.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    assert torch.equal(generate(fresh), expected)
