"""The images of a dataset for training: square crops, micro-conditioning, holdout, and latents in files.

SDXL is conditioned on an image's original size and on the crop's position (Podell et al. 2023, section 2.2),
so a crop carries these numbers. Latents are VAE posteriors, stored so that all training runs of a dataset
read them.
"""

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.config.loading.image_folder import METADATA
from harness.config.schema.training import CAPTION
from harness.diffusion.adapters.adapter import Verbatim
from harness.diffusion.training.noise import Part, Stream, counter_generator, uniform
from harness.errors import ArtifactError, TrainingError
from harness.store.artifact import is_inside

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model


VAE_FACTOR = 8


@dataclass(frozen=True, kw_only=True)
class TrainingImage:
    """An image whose shorter side is the model's resolution, and the size it had before it was resized."""

    file: Path
    sha256: str
    width: int
    height: int
    original_width: int
    original_height: int
    caption: str | None
    repeats: int

    def pixels(self) -> Image.Image:
        """Read the file, RGB. Raises ArtifactError where it is no longer what it was."""
        return _decode(self.file, self.sha256)


def read_images(dataset: Path, *, resolution: int) -> list[TrainingImage]:
    """The dataset's images in order. Raises ArtifactError where one does not match `metadata.jsonl`."""
    try:
        lines = (dataset / METADATA).read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        if not rows:
            raise ValueError(f"{METADATA} is empty")
        return [_image(dataset, row, resolution) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"dataset {dataset} is damaged ({type(error).__name__}: {error}); delete it to have it made again"
        ) from error


def _image(dataset: Path, row: Mapping[str, Any], resolution: int) -> TrainingImage:
    if not is_inside(row["file_name"]):
        raise ValueError(f"{row['file_name']!r} is no file of it")
    file = dataset / row["file_name"]
    width, height = _decode(file, row["sha256"]).size
    if min(width, height) != resolution or width % VAE_FACTOR or height % VAE_FACTOR:
        raise ValueError(f"{row['file_name']} is {width} × {height} px; the model needs {resolution}")
    return TrainingImage(
        file=file,
        sha256=row["sha256"],
        width=width,
        height=height,
        original_width=row["original_width"],
        original_height=row["original_height"],
        caption=row["caption"],
        repeats=row["repeats"],
    )


def _decode(file: Path, sha256: str) -> Image.Image:
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(
            f"{file} is not the image that was written; delete its dataset to have it made again"
        )
    return Image.open(io.BytesIO(data)).convert("RGB")


def held_out(images: Sequence[TrainingImage], count: int) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """The images to train on, and `count` that are kept from it.

    The same ones in every run of a dataset, whatever its seed, so that their losses can be compared; in no
    order that a recipe could have. Raises TrainingError where none would be left to train on.
    """
    if count >= len(images):
        raise TrainingError(
            f"training.holdout: {count} leaves nothing of {len(images)} images to train on; "
            f"at most {len(images) - 1}"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    kept = set(order[:count])
    return (
        [image for place, image in enumerate(images) if place not in kept],
        [images[place] for place in sorted(kept)],
    )


def caption_of(image: TrainingImage, prompt: str) -> str:
    """The prompt, with the image's own caption where it says `{caption}`: letters alone then."""
    if CAPTION not in prompt:
        return prompt
    if image.caption is None:
        raise TrainingError(
            f"training.prompt {prompt!r} needs a caption for {image.file.name}, which has none"
        )
    return Verbatim(prompt.replace(CAPTION, image.caption))


CACHE_BYTES = 2**30  # about 2000 views of 1024 px


@dataclass(frozen=True, kw_only=True)
class View:
    """A square of the (then mirrored) image, by its corner in pixels: multiples of the VAE's factor."""

    left: int
    top: int
    flip: bool


def center_view(image: TrainingImage, *, resolution: int) -> View:
    """The middle of the image."""
    left, top = ((side - resolution) // 2 // VAE_FACTOR * VAE_FACTOR for side in (image.width, image.height))
    return View(left=left, top=top, flip=False)


def drawn_view(
    image: TrainingImage,
    *,
    resolution: int,
    crop: Literal["center", "random"],
    flip: bool,
    key: tuple[int, Part, int, int],
) -> View:
    """The view of one row; `key` is its seed, part, step and number."""
    seed, part, step, row = key
    view = center_view(image, resolution=resolution)
    left, top = view.left, view.top
    if crop == "random":
        generator = counter_generator(seed, part, Stream.CROP, step, row)
        places = [(side - resolution) // VAE_FACTOR + 1 for side in (image.width, image.height)]
        left, top = (VAE_FACTOR * int(torch.randint(n, (), generator=generator)) for n in places)
    return View(left=left, top=top, flip=flip and uniform(seed, part, Stream.FLIP, step, row) < 0.5)


def cut(image: Image.Image, view: View, *, resolution: int) -> Image.Image:
    """The square: the image is mirrored first, so that the corner is where the row sees it."""
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.crop((view.left, view.top, view.left + resolution, view.top + resolution))


def time_ids(image: TrainingImage, view: View, *, resolution: int) -> list[float]:
    """Original height and width, crop's top and left, target height and width."""
    return [
        float(number)
        for number in (
            image.original_height,
            image.original_width,
            view.top,
            view.left,
            resolution,
            resolution,
        )
    ]


class Posteriors:
    """The VAE's posterior of every view, encoded once and sampled anew at each step; fp32 on the CPU.

    A view is known by its image's content, corner and mirroring. Each is encoded alone, because a batch
    rounds otherwise than a single image, and what is still to be encoded depends on where a run resumed.
    `stored` files (`latents.py`) hold some that were encoded before. The views used longest ago are dropped
    where there are more than `capacity` bytes of them.
    """

    def __init__(self, model: "Model", *, stored: Sequence[Path] = (), capacity: int = CACHE_BYTES) -> None:
        self._model, self._capacity = model, capacity
        self._stored = _names_in(stored)
        self._known: OrderedDict[tuple[str, View], tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def of(self, image: TrainingImage, view: View) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, shape [C, h, w]. Raises TrainingError where the VAE overflows."""
        key = (image.sha256, view)
        if key not in self._known:
            self._known[key] = self._read(image, view) or self._encode(image, view)
            self._bytes += _bytes(self._known[key])
            while self._bytes > self._capacity and len(self._known) > 1:
                self._bytes -= _bytes(self._known.popitem(last=False)[1])
        self._known.move_to_end(key)
        return self._known[key]

    def _read(self, image: TrainingImage, view: View) -> tuple[Tensor, Tensor] | None:
        mean, std = stored_names(image, view)
        if mean not in self._stored:
            return None
        return self._stored[mean].get_tensor(mean).clone(), self._stored[std].get_tensor(std).clone()

    def _encode(self, image: TrainingImage, view: View) -> tuple[Tensor, Tensor]:
        encoded = self._model.encode_images([cut(image.pixels(), view, resolution=self._model.resolution)])
        mean_Chw, std_Chw = (
            tensor_1Chw[0].to("cpu", torch.float32).contiguous()
            for tensor_1Chw in (encoded.mean_NChw, encoded.std_NChw)
        )
        if not (mean_Chw.isfinite().all() and std_Chw.isfinite().all()):
            raise TrainingError(
                f"the VAE encodes {image.file.name} to NaN or infinity, as SDXL's own VAE does in fp16; "
                "set model.vae to madebyollin/sdxl-vae-fp16-fix or model.precision to bf16"
            )
        return mean_Chw, std_Chw


def stored_names(image: TrainingImage, view: View) -> tuple[str, str]:
    """What the mean and the standard deviation of a view are called in a file."""
    name = f"{image.sha256} {view.left} {view.top} {'mirrored' if view.flip else 'plain'}"
    return f"{name} mean", f"{name} std"


def _names_in(files: Sequence[Path]) -> Mapping[str, Any]:
    """The open file of each name; a tensor is read when it is asked for."""
    opened = [safe_open(file, framework="pt") for file in files]
    return {name: file for file in opened for name in file.offset_keys()}


def _bytes(posterior: tuple[Tensor, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in posterior)


PICTURES_PER_FILE = 500  # 0.26 GB of 1024 px


def write_latents(model: "Model", *, images: Path, folder: Path, mirrored: bool) -> None:
    """Encode the middle of every image of a dataset, or that mirrored; fp32, as training would on its way.

    What the VAE encodes to NaN is left out: training says so where it comes to that image. Raises
    ArtifactError where the dataset is damaged.
    """
    dataset, posteriors = read_images(images, resolution=model.resolution), Posteriors(model, capacity=0)
    for first in range(0, len(dataset), PICTURES_PER_FILE):
        tensors: dict[str, Tensor] = {}
        for image in dataset[first : first + PICTURES_PER_FILE]:
            view = replace(center_view(image, resolution=model.resolution), flip=mirrored)
            with suppress(TrainingError):
                tensors.update(zip(stored_names(image, view), posteriors.of(image, view), strict=True))
        save_file(tensors, folder / f"latents-{first:06d}.safetensors")
