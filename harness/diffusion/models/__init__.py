"""Models: a protocol (`model.py`), and one class that implements it with stock diffusers pipelines."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.config.schema.model import ModelConfig
    from harness.diffusion.models.model import Model


def load_model(config: "ModelConfig", *, device: str | None = None) -> "Model":
    """Load a model onto `device` (default: cuda where there is one, else cpu).

    Raises ModelError where it cannot be found, downloaded or read. Nothing is cached here.
    """
    from harness.diffusion.models.loading import load_emoji, load_sdxl
    from harness.diffusion.models.sdxl import Sdxl

    match config.kind:
        case "emoji":
            return Sdxl(config, load_emoji(config), device=device)
        case "sdxl":
            return Sdxl(config, load_sdxl(config), device=device)
