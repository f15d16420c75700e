import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from harness.diffusion.training.noise import (
    add_noise,
    logit_normal_timestep,
    mean_squared_error,
    min_snr_weight,
    training_target,
    velocity,
)
from harness.errors import ModelError

ALPHA_BAR_B = torch.tensor([1.0, 0.9, 0.3, 0.0], dtype=torch.float64)


@pytest.fixture
def x0_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn((2, 4, 3, 5, 5), generator=generator, dtype=torch.float64)
    return x0, noise


def test_noise_runs_from_the_image_to_pure_noise(x0_and_noise: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = x0_and_noise
    noisy = add_noise(x0, noise, ALPHA_BAR_B)
    assert torch.equal(noisy[0], x0[0])
    assert torch.equal(noisy[3], noise[3])  # zero terminal SNR


def test_the_forward_process_keeps_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn((2, 4, 8, 64, 64), generator=generator)
    assert add_noise(x0, noise, ALPHA_BAR_B.float()).var(dim=(1, 2, 3)) == pytest.approx(1, abs=0.03)


def test_image_and_noise_are_recovered_from_velocity(
    x0_and_noise: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Salimans & Ho 2022, appendix D: x0 = α x_t − σ v and ε = σ x_t + α v, also where α is 0."""
    x0, noise = x0_and_noise
    noisy, v = add_noise(x0, noise, ALPHA_BAR_B), velocity(x0, noise, ALPHA_BAR_B)
    alpha, sigma = ALPHA_BAR_B.sqrt()[:, None, None, None], (1 - ALPHA_BAR_B).sqrt()[:, None, None, None]
    torch.testing.assert_close(alpha * noisy - sigma * v, x0)
    torch.testing.assert_close(sigma * noisy + alpha * v, noise)


def test_the_target_follows_the_prediction_type(x0_and_noise: tuple[torch.Tensor, torch.Tensor]) -> None:
    x0, noise = x0_and_noise
    parts = {"x0_BChw": x0, "noise_BChw": noise, "alpha_bar_B": ALPHA_BAR_B}
    assert torch.equal(training_target("epsilon", **parts), noise)
    assert torch.equal(training_target("v_prediction", **parts), velocity(x0, noise, ALPHA_BAR_B))
    with pytest.raises(ModelError, match="'sample'; trainable are 'epsilon' and 'v_prediction'"):
        training_target("sample", **parts)


def test_each_row_has_a_loss_of_its_own() -> None:
    prediction = torch.zeros(3, 2, 4, 4)
    target = torch.tensor([0.0, 1.0, 3.0])[:, None, None, None].expand(prediction.shape)
    assert mean_squared_error(prediction, target).tolist() == [0.0, 1.0, 9.0]


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weights_both_predictions_as_if_x0_were_predicted(gamma: float) -> None:
    """Hang et al. 2023: x0's loss weighs min(SNR, γ); an error e in x0 is e √SNR in ε, e √(SNR + 1) in v."""
    alpha_bar_B = torch.tensor([0.999, 0.9, 0.5, 0.1, 1e-4], dtype=torch.float64)
    snr_B = alpha_bar_B / (1 - alpha_bar_B)
    epsilon_B, v_B = (
        min_snr_weight(kind, alpha_bar_B=alpha_bar_B, gamma=gamma) for kind in ("epsilon", "v_prediction")
    )
    torch.testing.assert_close(epsilon_B * snr_B, snr_B.clamp(max=gamma))
    torch.testing.assert_close(v_B * (snr_B + 1), snr_B.clamp(max=gamma))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_diffusers_convention_for_v_is_its_scripts(gamma: float) -> None:
    """As train_dreambooth_lora_sdxl.py computes it from `compute_snr`."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps_B = torch.arange(1000)
    snr_B = compute_snr(scheduler, timesteps_B)
    expected_B = torch.stack([snr_B, gamma * torch.ones_like(snr_B)], dim=1).min(dim=1)[0] / snr_B + 1
    weight_B = min_snr_weight(
        "v_prediction", alpha_bar_B=scheduler.alphas_cumprod, gamma=gamma, of_v="diffusers"
    )
    torch.testing.assert_close(weight_B, expected_B)
    end_B = min_snr_weight("v_prediction", alpha_bar_B=torch.zeros(1), gamma=gamma, of_v="diffusers")
    assert end_B.item() == 2, "finite at zero terminal SNR"


def test_min_snr_is_finite_at_both_ends() -> None:
    for kind, last in (("epsilon", 1.0), ("v_prediction", 0.0)):
        assert min_snr_weight(kind, alpha_bar_B=torch.tensor([1.0, 0.0]), gamma=5.0).tolist() == [0.0, last]
    with pytest.raises(ModelError, match="'sample'"):
        min_snr_weight("sample", alpha_bar_B=ALPHA_BAR_B, gamma=5.0)


@pytest.mark.parametrize(("normal", "expected"), [(-40.0, 200), (0.0, 300), (40.0, 400)])
def test_logit_normal_timesteps_span_their_range(normal: float, expected: int) -> None:
    assert logit_normal_timestep(normal, mean=0, deviation=1, lowest=200, highest=400) == expected
