"""From a dataset folder to the batches of each step.

Everything random hangs on (seed, step, row) alone, so that a resumed run draws what an uninterrupted one
draws, a shorter run is the beginning of a longer one, and a row's noise does not depend on its neighbours.
A row's number counts through all forward passes of its step.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from harness.errors import StageError, TrainingError
from harness.models.model import Posterior
from harness.training.loss import add_noise, training_target

if TYPE_CHECKING:
    from harness.models.model import Model


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one forward pass, fp32 on the CPU, where their noise was drawn."""

    noisy_BChw: Tensor
    timesteps_B: Tensor
    target_BChw: Tensor


def read_pictures(dataset: Path, *, resolution: int) -> list[Image.Image]:
    """The dataset's pictures in order. Raises StageError where one does not match `metadata.jsonl`."""
    try:
        lines = (dataset / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        if not rows:
            raise ValueError("metadata.jsonl is empty")
        return [_read_picture(dataset, row["file_name"], row["sha256"], resolution) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"dataset {dataset} is damaged ({type(error).__name__}: {error}); delete it to have it made again"
        ) from error


def _read_picture(dataset: Path, name: str, sha256: str, resolution: int) -> Image.Image:
    data = (dataset / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{name} is not the picture that was written")
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.size != (resolution, resolution):
        raise ValueError(f"{name} is {image.width} × {image.height} px; the model needs {resolution}")
    return image


def encode_pictures(images: Sequence[Image.Image], model: "Model") -> Posterior:
    """The VAE's posterior of every picture, fp32 on the CPU: encoded once, sampled anew at each step."""
    encoded = model.encode_images(images)
    posterior = Posterior(mean_NChw=encoded.mean_NChw.float().cpu(), std_NChw=encoded.std_NChw.float().cpu())
    finite_N = (posterior.mean_NChw.isfinite() & posterior.std_NChw.isfinite()).flatten(1).all(dim=1)
    if not finite_N.all():
        raise TrainingError(
            f"the VAE encodes picture {int((~finite_N).nonzero()[0])} to NaN or infinity, as SDXL's own VAE "
            "does in fp16; set model.vae to madebyollin/sdxl-vae-fp16-fix or model.precision to bf16"
        )
    return posterior


def counter_generator(*key: int) -> torch.Generator:
    """A fresh CPU generator seeded with the 64-bit BLAKE2b of the key's numbers joined by "/".

    PyTorch's Mersenne twister uses the lower 32 bits of it.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, pictures: int) -> tuple[int, ...]:
    """The order of the pictures in one pass through them."""
    return tuple(torch.randperm(pictures, generator=counter_generator(seed, epoch)).tolist())


def picture_of(place: int, *, seed: int, pictures: int) -> int:
    """The picture at this place in the endless sequence of rows: each pass a permutation of all pictures."""
    epoch, position = divmod(place, pictures)
    return epoch_order(seed, epoch, pictures)[position]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """All batches of a training run."""

    posterior: Posterior
    alphas_cumprod: Tensor
    prediction_type: str
    seed: int
    rows_per_step: int

    def batch(self, *, step: int, rows: range) -> Batch:
        """These rows of step 1, 2, …: a picture, a timestep, the posterior's noise, the diffusion's noise."""
        first = (step - 1) * self.rows_per_step
        pictures = len(self.posterior.mean_NChw)
        index_B = [picture_of(first + row, seed=self.seed, pictures=pictures) for row in rows]
        mean_BChw = self.posterior.mean_NChw[index_B]
        generators = [counter_generator(self.seed, step, row) for row in rows]
        timesteps_B = torch.cat(
            [torch.randint(len(self.alphas_cumprod), (1,), generator=generator) for generator in generators]
        )
        noise_B2Chw = torch.stack(
            [torch.randn((2, *mean_BChw.shape[1:]), generator=generator) for generator in generators]
        )
        posterior_noise_BChw, noise_BChw = noise_B2Chw.unbind(dim=1)
        x0_BChw = mean_BChw + self.posterior.std_NChw[index_B] * posterior_noise_BChw
        alpha_bar_B = self.alphas_cumprod[timesteps_B]
        return Batch(
            noisy_BChw=add_noise(x0_BChw, noise_BChw, alpha_bar_B),
            timesteps_B=timesteps_B,
            target_BChw=training_target(
                self.prediction_type, x0_BChw=x0_BChw, noise_BChw=noise_BChw, alpha_bar_B=alpha_bar_B
            ),
        )
