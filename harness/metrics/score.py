"""From image files to rows of the scores table."""

from collections.abc import Sequence
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

    def score(self, images: "pd.DataFrame", folder: Path) -> list[list[dict[str, Any]]]:
        """For each metric the scores table's rows, in the order of `images`; `metric` is the metric's kind.

        `images` has columns image_id, prompt and path (relative to `folder`). An image that cannot be read
        gives null and the reason on every metric.
        """
        scored: list[list[dict[str, Any]]] = [[] for _ in self.metrics]
        for start in range(0, len(images), IMAGES_PER_BATCH):
            self._add_rows(scored, images.iloc[start : start + IMAGES_PER_BATCH], folder)
        return scored

    def _add_rows(self, scored: list[list[dict[str, Any]]], images: "pd.DataFrame", folder: Path) -> None:
        opened = [
            read_image(folder / path) if is_inside(path) else "its path leads out of the store"
            for path in images["path"]
        ]
        readable = [
            (image, prompt, (folder / path).absolute())
            for image, prompt, path in zip(opened, images["prompt"], images["path"], strict=True)
            if not isinstance(image, str)
        ]
        batch = Batch(
            images=[image for image, _, _ in readable],
            prompts=[prompt for _, prompt, _ in readable],
            paths=[path for _, _, path in readable],
        )
        for metric, rows in zip(self.metrics, scored, strict=True):
            measured = iter(metric.measure(batch) if readable else ())
            for image_id, image in zip(images["image_id"], opened, strict=True):
                found = _unreadable(image) if isinstance(image, str) else next(measured)
                rows.append(_row(image_id, metric, found))


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
    embedding = {"embedding": measured.vector} if metric.kind == "embedding" else {}
    return {
        "image_id": image_id,
        **embedding,
        "metric": metric.kind,
        "value": measured.value,
        "reason": measured.reason,
        "metric_version": metric.version,
        "weights_hash": metric.weights_hash,
        "prompt_truncated": measured.prompt_truncated,
    }
