"""Training images, made unless the store has them: in parts by several workers, then joined."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.config.plan.plan import Dataset
from harness.config.schema.recipe import GeneratedRecipe
from harness.diffusion.datasets import image_count
from harness.diffusion.models.model import SamplerSettings
from harness.engine.stages.context import Context
from harness.store.workspace import Workspace

PART = 8  # images of one part


def parts_of(dataset: Dataset) -> range:
    """The first index of each part of a dataset; none if it is read from a folder, in one go."""
    if not isinstance(dataset.recipe, GeneratedRecipe):
        return range(0)
    return range(0, dataset.recipe.count, PART)


def missing_parts(workspace: Workspace, dataset: Dataset) -> list[int]:
    """The parts that are not there, by their first index; none if the whole dataset is."""
    if workspace.dataset(dataset.dataset_id).done:
        return []
    return [first for first in parts_of(dataset) if not workspace.part(dataset.dataset_id, first).done]


def missing_from_dataset(workspace: Workspace, dataset: Dataset) -> int:
    """The number of a dataset's images that are not there yet."""
    count = image_count(dataset.recipe)
    if workspace.dataset(dataset.dataset_id).done:
        return 0
    if not isinstance(dataset.recipe, GeneratedRecipe):
        return count
    return parts_count(dataset, missing_parts(workspace, dataset))


def parts_count(dataset: Dataset, parts: Sequence[int]) -> int:
    """The number of images in these parts."""
    return sum(min(PART, image_count(dataset.recipe) - first) for first in parts)


def make_parts(ctx: Context, dataset: Dataset, parts: Sequence[int]) -> None:
    """Generate these parts of a dataset, unless they are there."""
    for first in parts:
        ctx.go_on()
        artifact = ctx.workspace.part(dataset.dataset_id, first)
        if artifact.done or ctx.workspace.dataset(dataset.dataset_id).done:
            continue
        last = min(first + PART, image_count(dataset.recipe))
        with artifact.build(model=dataset.model.model_dump(mode="json")) as folder:
            _write(ctx, dataset, folder, range(first, last))


def make_dataset(ctx: Context, dataset: Dataset) -> None:
    """The whole dataset, unless it is there: a folder's images, or generated ones from their parts."""
    workspace, artifact = ctx.workspace, ctx.workspace.dataset(dataset.dataset_id)
    if artifact.done:
        return
    about = {
        "model": dataset.model.model_dump(mode="json"),
        "recipe": dataset.recipe.model_dump(mode="json"),
    }
    if not parts_of(dataset):
        with artifact.build(**about, generation_seconds=0.0) as folder:
            _write(ctx, dataset, folder, range(image_count(dataset.recipe)))
        return
    from harness.diffusion.datasets.dataset import join_datasets

    parts = [workspace.part(dataset.dataset_id, first) for first in parts_of(dataset)]
    ctx.check_whole(*parts)
    seconds = sum(part.manifest()["seconds"] for part in parts)
    with artifact.build(**about, generation_seconds=seconds) as folder:
        join_datasets([part.fetch() for part in parts], folder)
    for part in parts:
        part.remove()
    with suppress(OSError):  # in a bucket there is no folder
        parts[0].path.parent.rmdir()


def _write(ctx: Context, dataset: Dataset, folder: Path, indices: range) -> None:
    """The images with these indices."""
    from harness.diffusion.datasets import make_samples
    from harness.diffusion.datasets.dataset import write_dataset

    model, recipe = ctx.model(dataset.model), dataset.recipe
    at_once = 1  # a folder's images are not generated
    if isinstance(recipe, GeneratedRecipe):
        settings = SamplerSettings(steps=recipe.steps, refiner_start=recipe.refiner_start)
        at_once = ctx.images_per_batch(model, settings)
    write_dataset(
        make_samples(recipe, model, indices, batch_size=at_once),
        folder,
        first=indices.start,
        resolution=model.resolution,
        report=lambda count: ctx.report("dataset_images", count),
    )
