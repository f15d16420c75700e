"""Degradations: pure functions, RGB image in, RGB image of the same size out.

`severity` lies in (0, 1]; a higher one is farther from the original. Lengths are shares of the shorter
side, so that a severity means the same at 64 px as at 1024 px (noise and JPEG alone work on single
pixels and blocks of 8). What is random comes from `rng` alone.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from harness.config.schema.recipe import DegradationName

Pixels_HW3 = NDArray[np.float32]  # 0 to 255


def degrade(
    image: Image.Image, name: DegradationName, *, severity: float, rng: np.random.Generator
) -> Image.Image:
    """The image after the degradation of this name."""
    match name:
        case "blur":
            return blur(image, severity)
        case "noise":
            return noise(image, severity, rng)
        case "jpeg":
            return jpeg(image, severity)
        case "pixelate":
            return pixelate(image, severity)
        case "distort":
            return distort(image, severity, rng)
        case "wash_out":
            return wash_out(image, severity)
        case "crop":
            return crop(image, severity, rng)
        case "duplicate":
            return duplicate(image, severity)
        case "darken":
            return darken(image, severity)
        case "overexpose":
            return overexpose(image, severity)


def blur(image: Image.Image, severity: float) -> Image.Image:
    """Gaussian blur; the radius is `severity` × 6 % of the side."""
    return image.filter(ImageFilter.GaussianBlur(severity * 0.06 * min(image.size)))


def noise(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise on each pixel and channel; its standard deviation is `severity` × 40 % of full scale."""
    pixels = _pixels(image)
    return _image(pixels + severity * 0.4 * 255 * rng.standard_normal(pixels.shape, dtype=np.float32))


def jpeg(image: Image.Image, severity: float) -> Image.Image:
    """JPEG artefacts; the quality falls geometrically from 30 to 3 as `severity` rises to 1."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=round(3 * 10 ** (1 - severity)))
    return Image.open(buffer).convert("RGB")


def pixelate(image: Image.Image, severity: float) -> Image.Image:
    """A mosaic; cells along a side fall geometrically from one per pixel to 8 as `severity` rises to 1."""
    cells = [max(1, round(side ** (1 - severity) * min(8, side) ** severity)) for side in image.size]
    small = image.resize((cells[0], cells[1]), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def distort(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """A smooth warp; the greatest shift is `severity` × 12 % of the side."""
    width, height = image.size
    reach = severity * 0.12 * min(image.size)
    dx_HW, dy_HW = (_smooth_field(rng, width=width, height=height) * reach for _ in range(2))
    y_HW, x_HW = np.mgrid[0:height, 0:width].astype(np.float32)
    return _image(_sample_bilinear(_pixels(image), x_HW=x_HW + dx_HW, y_HW=y_HW + dy_HW))


def wash_out(image: Image.Image, severity: float) -> Image.Image:
    """Faded towards light grey (200); `severity` × 85 % of the way."""
    pixels = _pixels(image)
    return _image(pixels + severity * 0.85 * (200 - pixels))


def crop(image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """A corner cut out and enlarged to the full size; `severity` × 60 % of each side is lost."""
    width, height = image.size
    kept = 1 - severity * 0.6
    left, top = (size * (1 - kept) * int(rng.integers(2)) for size in (width, height))
    box = (left, top, left + width * kept, top + height * kept)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def duplicate(image: Image.Image, severity: float) -> Image.Image:
    """The image repeated two by two, laid over the original with opacity `severity`."""
    small = image.resize(((image.width + 1) // 2, (image.height + 1) // 2), Image.Resampling.BOX)
    tiles = np.tile(_pixels(small), (2, 2, 1))[: image.height, : image.width]
    pixels = _pixels(image)
    return _image(pixels + severity * (tiles - pixels))


def darken(image: Image.Image, severity: float) -> Image.Image:
    """Brightness lowered by `severity` × 85 %."""
    return _image(_pixels(image) * (1 - severity * 0.85))


def overexpose(image: Image.Image, severity: float) -> Image.Image:
    """Light multiplied by 1 + 2.5 × `severity`, and clipped at white."""
    return _image(_pixels(image) * (1 + 2.5 * severity))


def _pixels(image: Image.Image) -> Pixels_HW3:
    return np.asarray(image, dtype=np.float32)


def _image(pixels: Pixels_HW3) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _smooth_field(rng: np.random.Generator, *, width: int, height: int) -> NDArray[np.float32]:
    """A random field of about five waves across, its greatest magnitude 1."""
    coarse = Image.fromarray(rng.standard_normal((5, 5), dtype=np.float32))
    field = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return field / np.abs(field).max()


def _sample_bilinear(
    pixels: Pixels_HW3, *, x_HW: NDArray[np.float32], y_HW: NDArray[np.float32]
) -> Pixels_HW3:
    """The image read at fractional places; places outside take the nearest edge."""
    height, width, _ = pixels.shape
    x_HW, y_HW = np.clip(x_HW, 0, width - 1), np.clip(y_HW, 0, height - 1)
    left, top = x_HW.astype(int), y_HW.astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    fx, fy = (x_HW - left)[..., None], (y_HW - top)[..., None]
    upper = pixels[top, left] * (1 - fx) + pixels[top, right] * fx
    lower = pixels[bottom, left] * (1 - fx) + pixels[bottom, right] * fx
    return upper * (1 - fy) + lower * fy
