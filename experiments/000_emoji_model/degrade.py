"""Ten ways to spoil a picture at a severity in (0, 1]. Pure: picture and generator in, picture out."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from subjects import SPECIFIC_WORDS

Picture = Image.Image


def _array(picture: Picture) -> NDArray[np.float32]:
    return np.asarray(picture, dtype=np.float32)


def _picture(values: NDArray[np.float32]) -> Picture:
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))


def degrade(picture: Picture, word: str, severity: float, rng: np.random.Generator) -> Picture:
    """Spoil an RGB picture in the way `word` names; size is kept, 0 < severity <= 1."""
    assert 0 < severity <= 1 and word in SPECIFIC_WORDS
    side = picture.width
    match word:
        case "blurry":
            return picture.filter(ImageFilter.GaussianBlur((0.6 + 2.4 * severity) * side / 64))
        case "noisy":
            return _noisy(picture, severity, rng)
        case "jpeg artifacts":
            return _jpeg(picture, severity)
        case "pixelated":
            small = max(6, round(side / (1.8 + 5.2 * severity)))
            return picture.resize((small, small), Image.Resampling.BOX).resize(
                (side, side), Image.Resampling.NEAREST
            )
        case "distorted":
            return _distorted(picture, severity, rng)
        case "washed out":
            keep = 0.75 - 0.6 * severity
            values = _array(picture)
            return _picture(keep * (0.5 * values + 0.5 * values.mean(2, keepdims=True)) + (1 - keep) * 205)
        case "cropped":
            window = side * (0.85 - 0.4 * severity)
            left, top = ((side - window) * rng.choice([0.0, 1.0]) for _ in range(2))
            return picture.resize(
                (side, side), Image.Resampling.BICUBIC, (left, top, left + window, top + window)
            )
        case "duplicate":
            return _duplicate(picture, severity, rng)
        case "dark":
            return _picture(_array(picture) * (0.65 - 0.5 * severity))
        case _:  # overexposed
            return _picture(_array(picture) * (1.25 + 0.9 * severity) + 70 * severity)


def _noisy(picture: Picture, severity: float, rng: np.random.Generator) -> Picture:
    values = _array(picture)
    return _picture(values + (12 + 55 * severity) * rng.standard_normal(values.shape, dtype=np.float32))


def _jpeg(picture: Picture, severity: float) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=round(24 - 20 * severity), subsampling=2)
    return Image.open(buffer).convert("RGB")


def _distorted(picture: Picture, severity: float, rng: np.random.Generator) -> Picture:
    """Shift rows and columns along random sine waves."""
    values, side = _array(picture), picture.width
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    size = (1.2 + 4.8 * severity) * side / 64
    turns, phase = rng.uniform(1.5, 3.0, 2), rng.uniform(0, 2 * np.pi, 2)
    shift_x = size * np.sin(2 * np.pi * turns[0] * y / side + phase[0])
    shift_y = size * np.sin(2 * np.pi * turns[1] * x / side + phase[1])
    rows = np.clip(np.rint(y + shift_y), 0, side - 1).astype(int)
    columns = np.clip(np.rint(x + shift_x), 0, side - 1).astype(int)
    return _picture(values[rows, columns])


def _duplicate(picture: Picture, severity: float, rng: np.random.Generator) -> Picture:
    """Lay shifted copies over the picture, as in a double exposure."""
    values, side = _array(picture), picture.width
    angle = rng.uniform(0, 2 * np.pi)
    reach = (4 + 12 * severity) * side / 64
    dx, dy = round(reach * np.cos(angle)), round(reach * np.sin(angle))
    share = 0.25 + 0.2 * severity
    copy: NDArray[np.float32] = np.roll(values, (dy, dx), axis=(0, 1))
    other: NDArray[np.float32] = np.roll(values, (-dy, -dx), axis=(0, 1))
    mixed = (1 - share) * values + share * (0.6 * copy + 0.4 * other)
    return _picture(mixed.astype(np.float32))
