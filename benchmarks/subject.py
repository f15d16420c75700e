"""What is measured: a model by name, images to train on, and a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from harness.config.plan.plan import Dataset, TrainingRun
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.model import EmojiModel, SdxlModel
from harness.config.schema.recipe import FolderRecipe
from harness.config.schema.training import TrainingConfig
from harness.diffusion.datasets.dataset import Sample, write_dataset
from harness.diffusion.models.loading import load_emoji
from harness.diffusion.models.pipelines import Pipelines
from harness.diffusion.models.random_weights import random_pipelines
from harness.diffusion.models.sdxl import Sdxl
from harness.diffusion.training.checkpoint import Checkpoint
from harness.diffusion.training.run_state import Job
from harness.errors import HarnessError

MODELS = ("emoji", "sdxl-random")


def load(name: str, *, resolution: int | None, refiner: bool = True) -> tuple[Pipelines, Sdxl]:
    """The stock pipelines for the plain way and the harness's model, with the same weights.

    `resolution` makes the images of `sdxl-random` smaller than 1024 px; its weights keep their full size.
    """
    match name:
        case "emoji":
            config: EmojiModel | SdxlModel = EmojiModel()
            pipelines = load_emoji(EmojiModel())
        case "sdxl-random":
            config = SdxlModel(
                source="random", refiner="random" if refiner else None, vae=None, precision="bf16"
            )
            pipelines = random_pipelines(config)
            for pipeline in (pipelines.base, pipelines.refiner):
                if resolution is not None and pipeline is not None:
                    pipeline.unet.register_to_config(sample_size=resolution // pipeline.vae_scale_factor)
        case _:
            raise AssertionError(name)
    return pipelines, Sdxl(config, pipelines, device=None)


def images(count: int, side: int) -> list[Image.Image]:
    """Coarse random colours: what is on an image changes no time."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((side, side))
        for _ in range(count)
    ]


def write(images: Sequence[Image.Image], folder: Path) -> Path:
    """The images as a dataset of the harness."""
    samples = [Sample(image=image, caption="wrong") for image in images]
    write_dataset(samples, folder, resolution=images[0].width, report=lambda _: None)
    return folder


def training_run(
    model: Sdxl,
    *,
    steps: int,
    batch_size: int,
    rank: int = 8,
    adapter: LowRankAdapter | None = None,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> TrainingRun:
    """On the prompt `wrong`, with the settings that diffusers' script has too: a LoRA on the attention."""
    training = TrainingConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    recipe = FolderRecipe(path=Path("images"))
    return TrainingRun(
        run_id=f"benchmark-{seed}",
        dataset=Dataset(dataset_id="benchmark", model=model.config, recipe=recipe),
        adapter=adapter or LowRankAdapter(rank=rank),
        training=training,
        checkpoints=(steps,),
        prior=None,
    )


def job(
    run: TrainingRun,
    dataset: Path,
    *,
    save: Callable[[Checkpoint, float], None] = lambda _checkpoint, _seconds: None,
    save_at: Callable[[int], bool] = lambda _: False,
    report: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Job:
    """The run as training takes it, from its beginning. An error ends the measurement."""
    return Job(
        run=run,
        images=dataset,
        prior=None,
        latents=(),
        resume=None,
        save=save,
        save_at=save_at,
        report=report,
        ended=_raised,
    )


def _raised(error: HarnessError | None) -> None:
    if error is not None:
        raise error
