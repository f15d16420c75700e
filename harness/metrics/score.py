"""From image files to rows of the scores table."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from harness.metrics.metric import Batch, Measurement, Metric
from harness.store.artifact import is_inside

if TYPE_CHECKING:
    import pandas as pd

IMAGES_PER_BATCH = 32  # open in memory: 100 MB at 1024 px


class Scorer:
    """Scores images on several metrics. Metrics that share an encoder share one pass through it.

    An image's scores do not depend on the others, on their order or their number: exactly on a CPU, within
    1e-4 on a GPU, whose kernels change with the size of a batch.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = tuple(metrics)

    def score(self, images: "pd.DataFrame", folder: Path) -> list[dict[str, Any]]:
        """The scores table's rows for every (image, metric), in the order of `images`, then of the metrics.

        `images` has columns image_id, prompt and path (relative to `folder`). An image that cannot be read
        gives null and the reason on every metric.
        """
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), IMAGES_PER_BATCH):
            rows.extend(self._rows(images.iloc[start : start + IMAGES_PER_BATCH], folder))
        return rows

    def _rows(self, images: "pd.DataFrame", folder: Path) -> Iterator[dict[str, Any]]:
        opened = [
            read_image(folder / path) if is_inside(path) else "its path leads out of the store"
            for path in images["path"]
        ]
        readable = [
            (image, prompt)
            for image, prompt in zip(opened, images["prompt"], strict=True)
            if not isinstance(image, str)
        ]
        batch = Batch([image for image, _ in readable], [prompt for _, prompt in readable])
        measured = [iter(metric.measure(batch) if readable else ()) for metric in self.metrics]
        for image_id, image in zip(images["image_id"], opened, strict=True):
            for metric, measurements in zip(self.metrics, measured, strict=True):
                yield _row(
                    image_id, metric, _unreadable(image) if isinstance(image, str) else next(measurements)
                )


def read_image(path: Path) -> Image.Image | str:
    """The image in RGB, or why it cannot be read."""
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except UnidentifiedImageError:
        return "not an image"
    except OSError as error:  # without the path, so that the reason is the same in every workspace
        return error.strerror or str(error)
    except (
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # SyntaxError: a broken PNG
        return str(error)


def default_device() -> str:
    """CUDA where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _unreadable(why: str) -> Measurement:
    return Measurement(value=None, reason=f"the image cannot be read: {why}")


def _row(image_id: str, metric: Metric, measured: Measurement) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "metric": metric.kind,
        "value": measured.value,
        "reason": measured.reason,
        "metric_version": metric.version,
        "weights_hash": metric.weights_hash,
        "prompt_truncated": measured.prompt_truncated,
    }
