"""SDXL's shapes as written down are those of the published architecture."""

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from harness.config.weights.names import TEXT_BODY
from harness.config.weights.sdxl import sdxl_shapes
from harness.diffusion.models.random_weights import UNET


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {
        name.removeprefix(TEXT_BODY): tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


def test_the_unet() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    assert shapes_of(unet) == sdxl_shapes()["unet"]


def test_the_text_encoders() -> None:
    for part, width, layers in (("text_encoder", 768, 12), ("text_encoder_2", 1280, 32)):
        config = CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, projection_dim=width
        )
        with torch.device("meta"):
            found = shapes_of(CLIPTextModelWithProjection(config))
        if part == "text_encoder":
            del found["text_projection"]
        assert found == sdxl_shapes()[part]  # type: ignore[index]
