"""The pipelines of a model, as loaded, and the dtypes of its precisions."""

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from harness.config.schema.model import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Pipelines:
    """A base, and its refiner where there is one. They share the second text encoder and the VAE."""

    base: StableDiffusionXLPipeline
    refiner: StableDiffusionXLImg2ImgPipeline | None
