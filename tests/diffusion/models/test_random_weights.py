"""The published architecture with random weights: names, sizes, tokens and numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from harness.config.schema.model import SdxlModel
from harness.diffusion.models.pipelines import Pipelines
from harness.diffusion.models.random_weights import _fill, hollow_pipelines, write_configuration

POOL = torch.randn(2**20 - 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def hollow() -> Pipelines:
    return hollow_pipelines(SdxlModel(source="random", refiner="random", vae=None, precision="bf16"))


def size(module: nn.Module) -> tuple[int, int]:
    return sum(parameter.numel() for parameter in module.parameters()), len(module.state_dict())


def test_sizes_are_the_published_ones(hollow: Pipelines) -> None:
    assert hollow.refiner is not None
    assert size(hollow.base.unet) == (2_567_463_684, 1680)
    assert size(hollow.refiner.unet) == (2_259_526_660, 1220)
    assert size(hollow.base.text_encoder) == (123_060_480, 196)
    assert size(hollow.base.text_encoder_2) == (694_659_840, 517)
    assert size(hollow.base.vae) == (83_653_863, 248)


def test_names_and_shapes_are_the_published_ones(hollow: Pipelines) -> None:
    """Some of each kind, as they stand in stabilityai/stable-diffusion-xl-base-1.0."""
    shapes = {name: tuple(tensor.shape) for name, tensor in hollow.base.unet.state_dict().items()}
    deepest = "down_blocks.2.attentions.1.transformer_blocks.9"
    assert shapes[f"{deepest}.attn2.to_k.weight"] == (1280, 2048)
    assert shapes[f"{deepest}.ff.net.0.proj.weight"] == (10240, 1280)
    assert shapes["mid_block.attentions.0.transformer_blocks.9.attn1.to_out.0.bias"] == (1280,)
    assert shapes["up_blocks.1.attentions.2.proj_in.weight"] == (640, 640)
    assert shapes["add_embedding.linear_1.weight"] == (1280, 2816)
    vae = {name: tuple(tensor.shape) for name, tensor in hollow.base.vae.state_dict().items()}
    assert vae["encoder.conv_out.weight"] == (8, 512, 3, 3)
    assert vae["decoder.mid_block.attentions.0.to_q.weight"] == (512, 512)


def test_everything_is_hollow_frozen_and_of_the_precision(hollow: Pipelines) -> None:
    for pipeline in (hollow.base, hollow.refiner):
        assert pipeline is not None
        modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        for parameter in (parameter for module in modules for parameter in module.parameters()):
            assert parameter.is_meta and not parameter.requires_grad and parameter.dtype == torch.bfloat16


def test_tokens_are_clips(hollow: Pipelines) -> None:
    """Numbers of CLIP's published vocabulary; the second tokenizer pads with `!`, which is 0."""
    assert hollow.base.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    padded = hollow.base.tokenizer_2("a", padding="max_length").input_ids
    assert padded == [49406, 320, 49407] + [0] * 74
    assert hollow.base.tokenizer("a", padding="max_length").input_ids[3:] == [49407] * 74


@pytest.mark.parametrize("refiner", [False, True])
def test_configurations_are_written_without_weights(hollow: Pipelines, tmp_path: Path, refiner: bool) -> None:
    write_configuration(tmp_path, refiner=refiner)
    pipeline: Any = hollow.refiner if refiner else hollow.base
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(tmp_path / "unet"))
    assert unet.state_dict().keys() == pipeline.unet.state_dict().keys()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, subfolder="tokenizer_2")
    assert tokenizer("a cat", padding="max_length").input_ids[:5] == [49406, 320, 2368, 49407, 0]
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["text_encoder"] == ([None, None] if refiner else ["transformers", "CLIPTextModel"])
    assert index["force_zeros_for_empty_prompt"] is not refiner
    assert not [*tmp_path.rglob("*.safetensors")]


def test_filled_text_encoder_gives_finite_embeddings_that_depend_on_the_words(hollow: Pipelines) -> None:
    """The smallest part, for real; the others are filled by the same function."""
    config = SdxlModel(source="random", refiner=None, vae=None, precision="fp32")
    encoder = hollow_pipelines(config).base.text_encoder
    _fill(encoder, POOL)
    ids = torch.tensor([hollow.base.tokenizer(text).input_ids for text in ("a red fox", "a blue fox")])
    with torch.inference_mode():
        hidden = encoder(ids).last_hidden_state
    assert hidden.isfinite().all() and (hidden[0, -1] - hidden[1, -1]).abs().mean() > 0.1
    assert not torch.equal(hidden[0, 1], hidden[0, 3]), "positions count"


def test_filling_is_repeatable_and_no_two_rows_are_alike() -> None:
    def filled() -> nn.Linear:
        with torch.device("meta"):
            layer = nn.Linear(1280, 10240, bias=True, dtype=torch.bfloat16)
        _fill(layer, POOL)
        return layer

    layer = filled()
    assert torch.equal(layer.weight, filled().weight)
    assert len(torch.unique(layer.weight.float(), dim=0)) == 10240
    assert layer.weight.float().std().item() == pytest.approx(1280**-0.5, rel=0.02)
    assert not layer.bias.any()
