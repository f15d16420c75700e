import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw

from harness.config.schema.recipe import DegradationName
from harness.diffusion.degradations import degrade

NAMES: tuple[DegradationName, ...] = DegradationName.__args__  # type: ignore[attr-defined]
SEVERITIES = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0)


def scene(side: int) -> Image.Image:
    """Round, square and fine things on a sky, as images have them."""
    sky = np.linspace((90, 150, 230), (230, 240, 250), side).astype(np.uint8)[:, None].repeat(side, axis=1)
    image = Image.fromarray(sky)
    draw = ImageDraw.Draw(image)
    unit = side / 16
    draw.ellipse((3 * unit, 4 * unit, 9 * unit, 10 * unit), fill=(220, 60, 30), outline=(60, 10, 10))
    draw.rectangle((9 * unit, 9 * unit, 14 * unit, 14 * unit), fill=(30, 120, 60))
    for step in range(4):
        ends = (unit * step * 4, 12 * unit, 8 * unit, 15 * unit)
        draw.line(ends, fill=(250, 220, 40), width=max(1, side // 64))
    return image


def slope(side: int) -> Image.Image:
    """Darkest at the upper left, brightest at the lower right."""
    ramp = np.linspace(0, 120, side)
    return Image.fromarray((ramp[:, None] + ramp + 10).astype(np.uint8)).convert("RGB")


def spoil(image: Image.Image, name: DegradationName, severity: float, seed: int = 0) -> np.ndarray:
    return np.asarray(degrade(image, name, severity=severity, rng=np.random.default_rng(seed)), dtype=float)


def distance(image: Image.Image, name: DegradationName, severity: float, seed: int = 0) -> float:
    difference = spoil(image, name, severity, seed) - np.asarray(image, dtype=float)
    return float(np.sqrt(np.square(difference).mean()))


@pytest.mark.parametrize("side", [64, 256])
@pytest.mark.parametrize("name", NAMES)
def test_more_severity_is_farther_from_the_original(name: DegradationName, side: int) -> None:
    # A crop moves all that it keeps, and what moves by more than its own size gets no farther: hence a slope.
    image = slope(side) if name == "crop" else scene(side)
    curves = [
        [distance(ImageChops.offset(image, 3 * seed), name, severity, seed) for severity in SEVERITIES]
        for seed in range(4)
    ]
    distances = np.mean(curves, axis=0)
    assert distances[0] > 0
    assert (np.diff(distances) > 0).all(), distances


@pytest.mark.parametrize("name", NAMES)
def test_size_and_mode_are_kept_and_the_image_given_is_untouched(name: DegradationName) -> None:
    image = scene(64).crop((0, 0, 64, 50))
    before = image.tobytes()
    spoilt = degrade(image, name, severity=0.6, rng=np.random.default_rng(0))
    assert (spoilt.size, spoilt.mode) == (image.size, "RGB")
    assert image.tobytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_gives_the_same_image(name: DegradationName) -> None:
    assert (spoil(scene(64), name, 0.6, seed=3) == spoil(scene(64), name, 0.6, seed=3)).all()


@pytest.mark.parametrize("name", ["noise", "distort", "crop"])
def test_what_is_random_follows_the_generator(name: DegradationName) -> None:
    assert len({spoil(scene(64), name, 0.6, seed).tobytes() for seed in range(8)}) > 1


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("noise", "jpeg")])
def test_a_severity_means_the_same_at_every_size(name: DegradationName) -> None:
    small, large = (distance(scene(side), name, 0.8, seed=1) for side in (64, 512))
    assert large == pytest.approx(small, rel=0.25)
