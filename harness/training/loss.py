"""The mathematics of a training step: pure functions, the papers' names.

Shape legend: B rows, C latent channels, h w latent size. ᾱ (`alpha_bar_B`) is the cumulative product of
1 − β at each row's timestep; it may be 0 at the last timestep (zero terminal SNR, Lin et al. 2023).
"""

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
            raise ModelError(
                f"the model's scheduler predicts {other!r}; trainable are 'epsilon' and 'v_prediction'"
            )


def mean_squared_error(prediction_BChw: Tensor, target_BChw: Tensor) -> Tensor:
    """The unweighted loss of each row (Ho et al. 2020, eq. 14), shape [B]."""
    return (prediction_BChw - target_BChw).square().mean(dim=(1, 2, 3))
