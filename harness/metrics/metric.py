"""What a metric is: images and prompts in, one number or one reason each out.

Shape legend: B images, D embedding width, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class ImageEncoder(Protocol):
    """What embeds images, once per batch for all metrics that share it."""

    @property
    def weights_hash(self) -> str:
        """16 hex digits over the weights."""
        ...

    def embed_images(self, images: Sequence["Image"]) -> "torch.Tensor":
        """Unit embeddings [B, D] of RGB images of any size, fp32, on the CPU."""
        ...


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric of one image: a finite value, or null and the reason. An embedding has a vector instead."""

    value: float | None
    reason: str | None = None
    vector: list[float] | None = None
    prompt_truncated: bool | None = None  # None if the metric does not read the prompt

    def __post_init__(self) -> None:
        missing = self.value is None and self.vector is None
        assert missing == (self.reason is not None), "null needs a reason, a value needs none"


def measurement(value: float, *, prompt_truncated: bool | None = None) -> Measurement:
    """A measurement of this value; one that is not finite becomes null with a reason."""
    if not np.isfinite(value):
        return Measurement(
            value=None, reason="the score is not a finite number", prompt_truncated=prompt_truncated
        )
    return Measurement(value=float(value), prompt_truncated=prompt_truncated)


@dataclass(frozen=True)
class Batch:
    """Readable RGB images with their plain prompts and files. Embeds them once per encoder."""

    images: Sequence["Image"]
    prompts: Sequence[str]
    paths: Sequence[Path] = ()  # absolute
    _embeddings: "dict[ImageEncoder, torch.Tensor]" = field(default_factory=dict, repr=False)

    @cached_property
    def pixels(self) -> list["np.ndarray"]:
        """The images as uint8 arrays [H, W, 3]."""
        return [np.asarray(image) for image in self.images]

    def embeddings(self, encoder: "ImageEncoder") -> "torch.Tensor":
        """Unit image embeddings [B, D], fp32, on the CPU."""
        if encoder not in self._embeddings:
            self._embeddings[encoder] = encoder.embed_images(self.images)
        return self._embeddings[encoder]


class Embedding:
    """The unit embedding itself. Distances between images are taken from it once all are there."""

    kind = "embedding"
    version = "1"

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder, self.weights_hash = encoder, encoder.weights_hash

    def measure(self, batch: Batch) -> list[Measurement]:
        """One vector per image; one that is not finite is null with a reason."""
        return [
            Measurement(value=None, vector=vector)
            if np.isfinite(vector).all()
            else Measurement(value=None, reason="the embedding is not finite")
            for vector in batch.embeddings(self.encoder).tolist()
        ]


class Metric(Protocol):
    """A metric. Each measurement depends on its own image and prompt alone, never on its neighbours."""

    @property
    def kind(self) -> str:
        """As in the spec; the `metric` column of the scores."""
        ...

    @property
    def version(self) -> str:
        """Of the definition."""
        ...

    @property
    def weights_hash(self) -> str | None:
        """16 hex digits over all weights that take part; null for a metric without weights."""
        ...

    def measure(self, batch: Batch) -> list[Measurement]:
        """One measurement per image, in order."""
        ...
