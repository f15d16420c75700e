"""Training images, made unless the store has them; several workers can generate one dataset, in shards."""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from harness.config.plan.plan import Dataset
from harness.config.schema.recipe import GeneratedRecipe
from harness.diffusion.datasets import image_count
from harness.diffusion.models.model import SamplerSettings
from harness.engine.stages.context import Context
from harness.store.workspace import Workspace

PART = 8  # training images that one worker draws while others draw the next


def ensure_dataset(ctx: Context, dataset_id: str) -> Path:
    """The folder of a recipe's images. Workers that need it while it is generated help, part by part."""
    artifact = ctx.workspace.dataset(dataset_id)
    dataset = ctx.plan.datasets[dataset_id]
    recipe = dataset.recipe
    if not artifact.done and isinstance(recipe, GeneratedRecipe):
        for first in range(0, recipe.count, PART):
            _ensure_part(ctx, dataset, first, wait=False)
    if not artifact.done:
        with ctx.workspace.claim("dataset", dataset_id):
            if not artifact.done:
                _build(ctx, dataset)
    return artifact.fetch()


def ensure_whole_dataset(ctx: Context, dataset_id: str) -> None:
    """The folder, its images as they were drawn: training is not to learn from damaged ones."""
    artifact = ctx.workspace.dataset(dataset_id)
    ensure_dataset(ctx, dataset_id)
    if ctx.workspace.discard_corrupt(artifact, ("dataset", dataset_id)):
        ctx.report("made again", 1)
        ensure_dataset(ctx, dataset_id)


def missing_from_dataset(workspace: Workspace, dataset: Dataset) -> int:
    """How many of a dataset's images are not there yet."""
    count = image_count(dataset.recipe)
    if workspace.dataset(dataset.dataset_id).done:
        return 0
    if not isinstance(dataset.recipe, GeneratedRecipe):
        return count
    firsts = range(0, count, PART)
    return sum(
        min(PART, count - first) for first in firsts if not workspace.part(dataset.dataset_id, first).done
    )


def _ensure_part(ctx: Context, dataset: Dataset, first: int, *, wait: bool) -> None:
    """Some images of a recipe, from this one on. Without `wait`, what others draw is left to them."""
    workspace = ctx.workspace
    whole, artifact = workspace.dataset(dataset.dataset_id), workspace.part(dataset.dataset_id, first)
    ctx.go_on()
    with ExitStack() as claims:
        name = artifact.path.name
        if wait:
            claims.enter_context(workspace.claim("part", name))
        elif not claims.enter_context(workspace.claim_if_free("part", name, at_once=True)):
            return
        if whole.done or artifact.done:
            return
        last = min(first + PART, image_count(dataset.recipe))
        with artifact.build(model=dataset.model.model_dump(mode="json")) as folder:
            _write(ctx, dataset, folder, range(first, last))


def _build(ctx: Context, dataset: Dataset) -> None:
    """The whole dataset: a folder's images in one go, generated ones from their shards."""
    if isinstance(dataset.recipe, GeneratedRecipe):
        _assemble(ctx, dataset)
        return
    with ctx.workspace.dataset(dataset.dataset_id).build(**_about(dataset), generation_seconds=0.0) as folder:
        _write(ctx, dataset, folder, range(image_count(dataset.recipe)))


def _assemble(ctx: Context, dataset: Dataset) -> None:
    """Those that others were at, and have not left finished, are drawn here."""
    from harness.diffusion.datasets.dataset import join_datasets

    workspace = ctx.workspace
    firsts = range(0, image_count(dataset.recipe), PART)
    parts = [workspace.part(dataset.dataset_id, first) for first in firsts]
    for first, part in zip(firsts, parts, strict=True):
        if part.done:
            workspace.discard_corrupt(part, ("part", part.path.name))
        _ensure_part(ctx, dataset, first, wait=True)
    seconds = sum(part.manifest()["seconds"] for part in parts)
    with workspace.dataset(dataset.dataset_id).build(**_about(dataset), generation_seconds=seconds) as folder:
        join_datasets([part.fetch() for part in parts], folder)
    for part in parts:
        part.remove()
    with suppress(OSError):  # another worker may still be in it
        parts[0].path.parent.rmdir()


def _write(ctx: Context, dataset: Dataset, folder: Path, indices: range) -> None:
    """Images of these numbers."""
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


def _about(dataset: Dataset) -> dict[str, Any]:
    return {
        "model": dataset.model.model_dump(mode="json"),
        "recipe": dataset.recipe.model_dump(mode="json"),
    }
