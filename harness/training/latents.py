"""The VAE posteriors of a dataset's pictures in files, so that every training run of it reads them."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from harness.errors import TrainingError
from harness.training.data import read_pictures
from harness.training.views import Posteriors, center_view, stored_names

if TYPE_CHECKING:
    from harness.models.model import Model

PICTURES_PER_FILE = 500  # 0.26 GB of 1024 px


def write_latents(model: "Model", *, pictures: Path, folder: Path, mirrored: bool) -> None:
    """Encode the middle of every picture of a dataset, or that mirrored; fp32, as training would on its way.

    What the VAE encodes to NaN is left out: training says so where it comes to that picture. Raises
    StageError where the dataset is damaged.
    """
    dataset, posteriors = read_pictures(pictures, resolution=model.resolution), Posteriors(model, capacity=0)
    for first in range(0, len(dataset), PICTURES_PER_FILE):
        tensors: dict[str, Tensor] = {}
        for picture in dataset[first : first + PICTURES_PER_FILE]:
            view = replace(center_view(picture, resolution=model.resolution), flip=mirrored)
            with suppress(TrainingError):
                tensors.update(zip(stored_names(picture, view), posteriors.of(picture, view), strict=True))
        save_file(tensors, folder / f"latents-{first:06d}.safetensors")
