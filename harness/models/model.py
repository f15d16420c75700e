"""What a model must be able to do for the rest of the house: draw rows, and lend its parts to training.

Shape legend: B rows, T tokens, D cross-attention width, P pooled width, C latent channels, h w latent size.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness.models.spec import ModelSpec
from harness.spec.evaluation import Branch
from harness.spec.trial import AdapterSpec

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class RowAdapter:
    """An adapter that acts on one row: the folder it was saved in, its scale and its guidance branch."""

    path: Path
    scale: float
    branch: Branch


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture to draw. Prompts may carry compel's weighting. `seed` alone decides the first latents."""

    prompt: str
    negative: str
    seed: int
    guidance: float
    adapters: tuple[RowAdapter, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """What all rows of a batch share."""

    steps: int
    refiner_start: float | None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn picture and the sha256 of the latents it started from (the same in every arm of a pair)."""

    image: "Image"
    latent_hash: str


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """VAE posterior in the UNet's units (scaling factor applied). Training draws mean + std * noise."""

    mean_NChw: "torch.Tensor"
    std_NChw: "torch.Tensor"


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What the UNet is conditioned on for one prompt at the model's own resolution, batch of one."""

    prompt_embeds_1TD: "torch.Tensor"
    pooled_1P: "torch.Tensor"
    time_ids_16: "torch.Tensor"


class Trainable(Protocol):
    """A UNet with one fresh adapter attached and only that adapter trainable (fp32 whatever the base is)."""

    def parameters(self) -> Iterator["torch.nn.Parameter"]:
        """The adapter's parameters, fp32, in a stable order."""
        ...

    def predict(
        self, noisy_BChw: "torch.Tensor", timesteps_B: "torch.Tensor", conditioning: Conditioning
    ) -> "torch.Tensor":
        """The UNet's output (ε or v, as the model's scheduler says), shape [B, C, h, w], fp32."""
        ...

    def state_dict(self) -> dict[str, "torch.Tensor"]:
        """The adapter in diffusers' key layout (`unet.….lora_A.weight`), fp32, on the CPU."""
        ...

    def load_state_dict(self, state: dict[str, "torch.Tensor"]) -> None:
        """Put back what `state_dict` gave."""
        ...


class Model(Protocol):
    """A text-to-image model of the SDXL kind, loaded once per process."""

    spec: ModelSpec
    resolution: int  # pixels, square
    device: "torch.device"

    def draw(self, rows: Sequence[Row], settings: DrawSettings) -> list[Picture]:
        """Pictures in the order of the rows. Each depends on its row alone, not on its neighbours."""
        ...

    def encode_images(self, images: Sequence["Image"]) -> Posterior:
        """VAE posterior of pictures at the model's resolution."""
        ...

    def condition(self, prompt: str) -> Conditioning:
        """Text conditioning of one prompt for training."""
        ...

    def attach(self, adapter: AdapterSpec, seed: int) -> AbstractContextManager[Trainable]:
        """A fresh adapter, initialised from `seed`; on leaving, the UNet is exactly what it was."""
        ...

    def noise_schedule(self) -> tuple["torch.Tensor", str]:
        """Training `alphas_cumprod` [1000] (fp32, CPU) and the prediction type: epsilon or v_prediction."""
        ...

    def save_adapter(
        self, state: dict[str, "torch.Tensor"], adapter: AdapterSpec, folder: Path, metadata: dict[str, str]
    ) -> None:
        """Write `pytorch_lora_weights.safetensors`, alpha included, for stock `load_lora_weights`."""
        ...
