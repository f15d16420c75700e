"""The mathematics of a training step (pure functions, the papers' names), and its random numbers.

(seed, part, stream, step, row) alone decides a random number. So a resumed run equals an uninterrupted one, a
shorter run is the beginning of a longer one, a row depends on neither its neighbours nor its process, and
switching one thing on (random crops, say) changes no other. A row's number counts through all forward passes
of its step.

Shape legend: B rows, C latent channels, h w latent size. ᾱ (`alpha_bar_B`) is the cumulative product of 1 − β
at each row's timestep; it may be 0 at the last timestep (zero terminal SNR, Lin et al. 2023).
"""

import hashlib
from enum import IntEnum
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from harness.errors import ModelError


def add_noise(x0_BChw: Tensor, noise_BChw: Tensor, alpha_bar_B: Tensor) -> Tensor:
    """x_t = √ᾱ x_0 + √(1 − ᾱ) ε: the forward process of DDPM (Ho et al. 2020, eq. 4)."""
    alpha_bar_B111 = alpha_bar_B[:, None, None, None]
    return alpha_bar_B111.sqrt() * x0_BChw + (1 - alpha_bar_B111).sqrt() * noise_BChw


def velocity(x0_BChw: Tensor, noise_BChw: Tensor, alpha_bar_B: Tensor) -> Tensor:
    """V = √ᾱ ε − √(1 − ᾱ) x_0 (Salimans & Ho 2022, section 4)."""
    alpha_bar_B111 = alpha_bar_B[:, None, None, None]
    return alpha_bar_B111.sqrt() * noise_BChw - (1 - alpha_bar_B111).sqrt() * x0_BChw


def training_target(
    prediction_type: str, *, x0_BChw: Tensor, noise_BChw: Tensor, alpha_bar_B: Tensor
) -> Tensor:
    """What the UNet must predict: ε (Ho et al. 2020, eq. 14) or v."""
    match prediction_type:
        case "epsilon":
            return noise_BChw
        case "v_prediction":
            return velocity(x0_BChw, noise_BChw, alpha_bar_B)
        case other:
            raise untrainable(other)


def min_snr_weight(
    prediction_type: str, *, alpha_bar_B: Tensor, gamma: float, of_v: Literal["kohya", "diffusers"] = "kohya"
) -> Tensor:
    """Min-SNR-γ (Hang et al. 2023, section 3.4): min(SNR, γ) in units of x_0, for what the UNet predicts.

    With SNR = ᾱ / (1 − ᾱ): min(SNR, γ) / SNR for ε and min(SNR, γ) / (SNR + 1) for v, shape [B]. At ᾱ = 0
    the weight of ε is its limit, 1; that of v is 0. diffusers' scripts weigh v by min(SNR, γ) / SNR + 1
    (`of_v`), which at ᾱ = 0 is 2.
    """
    of_epsilon_B = (gamma * (1 - alpha_bar_B) / alpha_bar_B).clamp(max=1)
    match prediction_type:
        case "epsilon":
            return of_epsilon_B
        case "v_prediction" if of_v == "diffusers":
            return of_epsilon_B + 1
        case "v_prediction":
            return torch.minimum(alpha_bar_B, gamma * (1 - alpha_bar_B))
        case other:
            raise untrainable(other)


def logit_normal_timestep(normal: float, *, mean: float, deviation: float, lowest: int, highest: int) -> int:
    """The range's timestep at the sigmoid of mean + deviation · normal (Esser et al. 2024, sec. 3.1)."""
    share = torch.sigmoid(torch.tensor(mean + deviation * normal, dtype=torch.float64)).item()
    return min(lowest + int(share * (highest - lowest + 1)), highest)


def mean_squared_error(prediction_BChw: Tensor, target_BChw: Tensor) -> Tensor:
    """The unweighted loss of each row (Ho et al. 2020, eq. 14), shape [B]."""
    return (prediction_BChw - target_BChw).square().mean(dim=(1, 2, 3))


def untrainable(prediction_type: str) -> ModelError:
    """The error for a scheduler that predicts neither ε nor v."""
    return ModelError(
        f"the model's scheduler predicts {prediction_type!r}; trainable are 'epsilon' and 'v_prediction'"
    )


class Part(IntEnum):
    """Which images a draw is for. The numbers are part of what training gives: never change one."""

    PICTURES = 0
    PRIOR = 1
    HOLDOUT = 2


class Stream(IntEnum):
    """What is drawn. The numbers are part of what training gives: never change one."""

    ORDER = 0
    TIMESTEP = 1
    POSTERIOR = 2
    NOISE = 3
    OFFSET = 4
    CAPTION = 5
    CROP = 6
    FLIP = 7
    DROPOUT = 8


def counter_seed(seed: int, part: Part, stream: Stream, step: int, row: int) -> int:
    """The 64-bit BLAKE2b of the numbers joined by "/". PyTorch's Mersenne twister uses its lower 32 bits."""
    key = "/".join(str(int(number)) for number in (seed, part, stream, step, row))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def counter_generator(seed: int, part: Part, stream: Stream, step: int, row: int) -> torch.Generator:
    """A fresh CPU generator for one draw."""
    return torch.Generator().manual_seed(counter_seed(seed, part, stream, step, row))


def uniform(seed: int, part: Part, stream: Stream, step: int, row: int) -> float:
    """A number of [0, 1)."""
    generator = counter_generator(seed, part, stream, step, row)
    return float(torch.rand((), generator=generator, dtype=torch.float64))


@lru_cache(maxsize=8)
def epoch_order(seed: int, part: Part, epoch: int, entries: int) -> tuple[int, ...]:
    """The order of one pass through this many entries."""
    generator = counter_generator(seed, part, Stream.ORDER, epoch, 0)
    return tuple(torch.randperm(entries, generator=generator).tolist())


def entry_at(place: int, *, seed: int, part: Part, entries: int) -> int:
    """The entry at this place of the endless sequence of rows: each pass a permutation of all entries."""
    epoch, position = divmod(place, entries)
    return epoch_order(seed, part, epoch, entries)[position]
