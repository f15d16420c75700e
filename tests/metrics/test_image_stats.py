from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import image_gradients

from harness.metrics.image_stats import clipped_pixels, contrast, luma, saturation, sharpness


def flat(*rgb: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(rgb, dtype=np.uint8), (6, 8, 3))


def noise(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)


def checkerboard() -> NDArray[np.uint8]:
    board = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)
    return np.repeat(board[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("rgb", "value"), [((0, 0, 0), 0.0), ((90, 90, 90), 0.0), ((200, 0, 0), 1.0), ((200, 100, 150), 0.5)]
)
def test_saturation(rgb: tuple[int, int, int], value: float) -> None:
    assert saturation(flat(*rgb)) == pytest.approx(value)


def test_saturation_is_a_mean_over_pixels() -> None:
    half = np.concatenate([flat(255, 0, 0), flat(10, 10, 10)])
    assert saturation(half) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("rgb", "value"), [((128, 128, 128), 0.0), ((0, 128, 128), 1.0), ((128, 255, 0), 1.0), ((1, 254, 1), 0.0)]
)
def test_clipped_pixels(rgb: tuple[int, int, int], value: float) -> None:
    assert clipped_pixels(flat(*rgb)) == value


def test_clipped_pixels_counts_pixels_not_channels() -> None:
    image = flat(128, 128, 128).copy()
    image[0, 0] = (0, 255, 0)
    image[0, 1] = (0, 10, 10)
    assert clipped_pixels(image) == pytest.approx(2 / 48)


def test_contrast() -> None:
    assert contrast(flat(30, 60, 90)) == pytest.approx(0, abs=1e-12)
    assert contrast(checkerboard()) == pytest.approx(0.5)
    dimmed = (checkerboard() // 5).astype(np.uint8)
    assert contrast(dimmed) == pytest.approx(0.1)


def test_sharpness_of_known_images() -> None:
    assert sharpness(flat(30, 60, 90)) == pytest.approx(0, abs=1e-18)
    ramp = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(9, axis=0)
    assert sharpness(ramp) == pytest.approx(0, abs=1e-18)  # a straight gradient has no second derivative
    # Each inner pixel has four neighbours of the other colour: the Laplacian is ±4 × 255.
    assert sharpness(checkerboard()) == pytest.approx((4 * 255) ** 2)


def test_sharpness_agrees_with_torchmetrics_gradients() -> None:
    """Differences of torchmetrics' forward differences are the second differences of the Laplacian."""
    grey = torch.from_numpy(luma(noise()))[None, None]
    down, right = image_gradients(grey)
    down_twice, right_twice = image_gradients(down)[0], image_gradients(right)[1]
    laplacian = down_twice[0, 0, :-2, 1:-1] + right_twice[0, 0, 1:-1, :-2]
    assert sharpness(noise()) == pytest.approx(laplacian.var(unbiased=False).item())


def test_blur_lowers_sharpness() -> None:
    image = noise().astype(np.float64)
    blurred = (image[:-1, :-1] + image[1:, :-1] + image[:-1, 1:] + image[1:, 1:]) / 4
    assert sharpness(blurred.astype(np.uint8)) < 0.5 * sharpness(noise())


def test_a_image_too_small_for_a_laplacian_is_no_number() -> None:
    assert np.isnan(sharpness(flat(1, 2, 3)[:2]))


@pytest.mark.parametrize(
    ("guard", "low", "high"), [(saturation, 0, 1), (clipped_pixels, 0, 1), (contrast, 0, 0.5)]
)
@pytest.mark.parametrize(
    "image", [noise(), checkerboard(), flat(0, 0, 0), flat(255, 255, 255), flat(255, 0, 0)]
)
def test_the_declared_range(
    guard: Callable[[NDArray[np.uint8]], float], low: float, high: float, image: NDArray[np.uint8]
) -> None:
    assert low <= guard(image) <= high
