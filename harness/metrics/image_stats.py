"""Numbers read off the pixels, without weights: they show when a "better" image is only a louder one.

More guidance raises preference scores and saturation together ("Guidance Matters", arXiv 2602.22570), so a
gain that comes with much more saturation, clipping or contrast may be no gain. None has a better direction.
All take uint8 RGB [H, W, 3], as stored (sRGB, gamma-encoded).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.config.schema.metric import ImageStatsMetric
from harness.metrics.metric import Batch, Measurement, measurement

Pixels = NDArray[np.uint8]
GuardKind = Literal["saturation", "clipped_pixels", "contrast", "sharpness"]


def luma(pixels_HW3: Pixels) -> NDArray[np.float64]:
    """Brightness [H, W] in grey levels 0 to 255: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
    return pixels_HW3.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def saturation(pixels_HW3: Pixels) -> float:
    """Mean HSV saturation over pixels, (max − min) / max of the channels, 0 for black. From 0 (grey) to 1."""
    high = pixels_HW3.max(axis=2).astype(np.float64)
    low = pixels_HW3.min(axis=2).astype(np.float64)
    return float(np.mean((high - low) / np.maximum(high, 1.0)))


def clipped_pixels(pixels_HW3: Pixels) -> float:
    """Share of pixels with at least one channel at 0 or 255, where detail may have been lost. From 0 to 1."""
    return float(np.mean(((pixels_HW3 == 0) | (pixels_HW3 == 255)).any(axis=2)))


def contrast(pixels_HW3: Pixels) -> float:
    """RMS contrast (Peli 1990): standard deviation of luma / 255. From 0 (flat) to 0.5."""
    return float(luma(pixels_HW3).std() / 255)


def sharpness(pixels_HW3: Pixels) -> float:
    """Variance of the 4-neighbour Laplacian of luma over inner pixels, in grey levels squared; 0 is flat.

    The usual measure of focus (Pech-Pacheco et al. 2000). Noise raises it as edges do. NaN, hence null, for a
    image below 3 × 3 pixels. Not comparable between resolutions.
    """
    grey = luma(pixels_HW3)
    if min(grey.shape) < 3:
        return float("nan")
    centre = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre
    return float(laplacian.var())


class Guard:
    """One guard as a metric."""

    weights_hash = None
    version = ImageStatsMetric.version

    def __init__(self, kind: GuardKind) -> None:
        self.kind = kind
        self._function = _function(kind)

    def measure(self, batch: Batch) -> list[Measurement]:
        """One number per image."""
        return [measurement(self._function(pixels)) for pixels in batch.pixels]


def _function(kind: GuardKind) -> Callable[[Pixels], float]:
    match kind:
        case "saturation":
            return saturation
        case "clipped_pixels":
            return clipped_pixels
        case "contrast":
            return contrast
        case "sharpness":
            return sharpness
