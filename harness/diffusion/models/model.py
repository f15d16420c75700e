"""The model protocol: generates rows, and gives its parts to training.

Shape legend: B rows, N images, C latent channels, h w latent size.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness.config.schema.adapter import AdapterConfig
from harness.config.schema.evaluation import Branch, CfgGuider, GuiderConfig, MergeConfig, Scheduler
from harness.config.schema.model import ModelConfig

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from harness.diffusion.adapters.adapter import ParameterGroup


@dataclass(frozen=True, kw_only=True)
class RowAdapter:
    """An adapter that acts on one row: its file, or the folder it was saved in; its scale and its branch."""

    path: Path
    scale: float
    branch: Branch


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image to generate. Prompts may carry compel's weighting. `seed` alone decides the first latents.

    `{prompt}` in `negative` stands for the prompt. With `merge`, the adapters are merged into one that acts
    on their (common) branch at scale 1. `measured`: with its effective guidance, at up to two rows more.
    """

    prompt: str
    negative: str
    seed: int
    guidance: float
    guidance_interval: tuple[float, float] | None = None
    guider: GuiderConfig = field(default_factory=CfgGuider)
    measured: bool = False
    adapters: tuple[RowAdapter, ...] = ()
    merge: MergeConfig | None = None


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """What all rows of a batch share. Null: the model's own scheduler and size (width, height)."""

    steps: int
    refiner_start: float | None
    guidance_rescale: float = 0.0
    scheduler: Scheduler | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """A generated image and the sha256 of the latents it started from (the same in every arm of a pair).

    `effective_guidance` and `orthogonal_share` are the means over the base's steps of
    `guidance.step_guidance`; None where they are not measured, and for an unguided image.
    """

    image: "Image"
    latent_hash: str
    effective_guidance: float | None = None
    orthogonal_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """VAE posterior in the UNet's units (scaling factor applied). Training draws mean + std * noise."""

    mean_NChw: "torch.Tensor"
    std_NChw: "torch.Tensor"


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """An adapter to be trained: from its beginning, which `seed` alone decides, or from a state.

    `seed` is None if the state is put back before the first step: until then a low-rank adapter is zeros.
    """

    adapter: AdapterConfig
    seed: int | None


class Member(Protocol):
    """One trial's adapter among those that are trained together."""

    def groups(self) -> list["ParameterGroup"]:
        """The adapter's parameters, fp32, each once, in a stable order; no group is empty."""
        ...

    def clear_gradients(self) -> None:
        """Make every parameter's gradient zero."""
        ...

    def state_dict(self) -> dict[str, "torch.Tensor"]:
        """The adapter in diffusers' key layout (`unet.….lora_A.weight`), fp32, on the CPU."""
        ...

    def load_state_dict(self, state: Mapping[str, "torch.Tensor"]) -> None:
        """Put back what `state_dict` gave, whatever adapters it was trained beside."""
        ...

    def trimmed(self, number: int, values: "torch.Tensor") -> "torch.Tensor":
        """What an optimizer keeps for parameter `number` (in the groups' order), as if trained alone."""
        ...

    def padded(self, number: int, values: "torch.Tensor") -> "torch.Tensor":
        """What `trimmed` gave, as this parameter has it now. On the CPU."""
        ...


class Trainable(Protocol):
    """A model with fresh adapters attached and only them trainable (fp32 whatever the base is)."""

    members: Sequence[Member]

    def predict(
        self,
        noisy_BChw: "torch.Tensor",
        timesteps_B: "torch.Tensor",
        captions: Sequence[str],
        time_ids_B6: "torch.Tensor",
        *,
        counts: Sequence[int] | None = None,
        dropout_seeds: Sequence[int] | None = None,
    ) -> "torch.Tensor":
        """The UNet's output (ε or v, as the model's scheduler says), shape [B, C, h, w], fp32.

        Each row has its own caption (the empty one is the unconditional) and micro-conditioning: original
        height and width, crop's top and left, target height and width, in pixels. `counts` are the rows of
        each member, neighbours in the members' order; null: all are the only member's. Dropout acts where
        gradients are kept, each member's drawn from its own seed (None: 0).
        """
        ...


class Texts(Protocol):
    """The embeddings of texts on which no adapter acts: what the model knows, and files of more."""

    def unknown(self, texts: Iterable[str]) -> set[str]:
        """Those that would have to be encoded."""
        ...

    def write(self, texts: Iterable[str], file: Path) -> None:
        """Encode them into a file. One that cannot be encoded is left out: generating with it says why."""
        ...

    def read(self, texts: Iterable[str], file: Path) -> None:
        """Know those of the texts that the file holds, as if they had been encoded here."""
        ...


class Model(Protocol):
    """A text-to-image model of the SDXL kind, loaded once per process."""

    config: ModelConfig
    resolution: int  # pixels, square
    scheduler: Scheduler  # its own, used where the settings name none
    device: "torch.device"
    texts: Texts

    def generate(self, rows: Sequence[Row], settings: SamplerSettings) -> list[GeneratedImage]:
        """Images in the order of the rows. Each depends on its row alone, not on its neighbours."""
        ...

    def images_per_batch(self, settings: SamplerSettings) -> int:
        """How many rows `generate` should be given together: as many as the free memory holds."""
        ...

    def encode_images(self, images: Sequence["Image"]) -> Posterior:
        """VAE posterior of RGB images of one size, multiples of 8."""
        ...

    def attach(
        self, fresh: Sequence[Fresh], *, checkpointing: bool = False, compiled: bool = False
    ) -> AbstractContextManager[Trainable]:
        """Fresh adapters, low-rank or one of another kind; on leaving, the model is exactly what it was.

        `checkpointing` computes activations again in the backward pass; `compiled` runs the UNet's
        transformer blocks through torch.compile.
        """
        ...

    def noise_schedule(self) -> tuple["torch.Tensor", str]:
        """Training `alphas_cumprod` [1000] (fp32, CPU) and the prediction type: epsilon or v_prediction."""
        ...

    def save_adapter(
        self, state: dict[str, "torch.Tensor"], adapter: AdapterConfig, folder: Path, metadata: dict[str, str]
    ) -> None:
        """Write the file that stock `load_lora_weights` or `load_textual_inversion` reads, scale included."""
        ...
