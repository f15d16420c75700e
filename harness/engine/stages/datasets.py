"""Training pictures, made unless the store has them; all workers that want a dataset draw it together.

A dataset is drawn in parts. Each part is drawn once, by whoever finds it free; the last to come for the whole
waits for those that others are at, and joins them.
"""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from harness.config.plan.plan import Dataset
from harness.config.schema.recipe import Drawn
from harness.diffusion.datasets import picture_count
from harness.diffusion.models.model import DrawSettings
from harness.engine.stages.context import Bench
from harness.store.workspace import Workspace

PART = 8  # training pictures that one worker draws while others draw the next


def ensure_dataset(bench: Bench, dataset_id: str) -> Path:
    """The folder of a recipe's pictures. Whoever needs it while it is drawn helps, part by part."""
    stage = bench.workspace.dataset(dataset_id)
    dataset = bench.plan.datasets[dataset_id]
    recipe = dataset.recipe
    if not stage.done and isinstance(recipe, Drawn):
        for first in range(0, recipe.count, PART):
            _ensure_part(bench, dataset, first, wait=False)
    if not stage.done:
        with bench.workspace.claim("dataset", dataset_id):
            if not stage.done:
                _build(bench, dataset)
    return stage.fetch()


def ensure_whole_dataset(bench: Bench, dataset_id: str) -> None:
    """The folder, its pictures as they were drawn: training is not to learn from damaged ones."""
    stage = bench.workspace.dataset(dataset_id)
    ensure_dataset(bench, dataset_id)
    if bench.workspace.take_away_damaged(stage, ("dataset", dataset_id)):
        bench.report("made again", 1)
        ensure_dataset(bench, dataset_id)


def missing_from_dataset(workspace: Workspace, dataset: Dataset) -> int:
    """How many of a dataset's pictures are not there yet."""
    count = picture_count(dataset.recipe)
    if workspace.dataset(dataset.dataset_id).done:
        return 0
    if not isinstance(dataset.recipe, Drawn):
        return count
    firsts = range(0, count, PART)
    return sum(
        min(PART, count - first) for first in firsts if not workspace.part(dataset.dataset_id, first).done
    )


def _ensure_part(bench: Bench, dataset: Dataset, first: int, *, wait: bool) -> None:
    """Some pictures of a recipe, from this one on. Without `wait`, what others draw is left to them."""
    workspace = bench.workspace
    whole, stage = workspace.dataset(dataset.dataset_id), workspace.part(dataset.dataset_id, first)
    bench.go_on()
    with ExitStack() as claims:
        name = stage.path.name
        if wait:
            claims.enter_context(workspace.claim("part", name))
        elif not claims.enter_context(workspace.claim_if_free("part", name, at_once=True)):
            return
        if whole.done or stage.done:
            return
        last = min(first + PART, picture_count(dataset.recipe))
        with stage.build(model=dataset.model.model_dump(mode="json")) as folder:
            _write(bench, dataset, folder, range(first, last))


def _build(bench: Bench, dataset: Dataset) -> None:
    """The whole: somebody's own pictures at once, drawn ones of their parts."""
    if isinstance(dataset.recipe, Drawn):
        _assemble(bench, dataset)
        return
    with bench.workspace.dataset(dataset.dataset_id).build(**_about(dataset), draw_seconds=0.0) as folder:
        _write(bench, dataset, folder, range(picture_count(dataset.recipe)))


def _assemble(bench: Bench, dataset: Dataset) -> None:
    """Those that others were at, and have not left finished, are drawn here."""
    from harness.diffusion.datasets.dataset import join_datasets

    workspace = bench.workspace
    firsts = range(0, picture_count(dataset.recipe), PART)
    parts = [workspace.part(dataset.dataset_id, first) for first in firsts]
    for first, part in zip(firsts, parts, strict=True):
        if part.done:
            workspace.take_away_damaged(part, ("part", part.path.name))
        _ensure_part(bench, dataset, first, wait=True)
    seconds = sum(part.manifest()["seconds"] for part in parts)
    with workspace.dataset(dataset.dataset_id).build(**_about(dataset), draw_seconds=seconds) as folder:
        join_datasets([part.fetch() for part in parts], folder)
    for part in parts:
        part.remove()
    with suppress(OSError):  # where somebody is about to find that he came too late
        parts[0].path.parent.rmdir()


def _write(bench: Bench, dataset: Dataset, folder: Path, indices: range) -> None:
    """Pictures of these numbers."""
    from harness.diffusion.datasets import make_samples
    from harness.diffusion.datasets.dataset import write_dataset

    model, recipe = bench.model(dataset.model), dataset.recipe
    at_once = 1  # somebody's own pictures are not drawn
    if isinstance(recipe, Drawn):
        settings = DrawSettings(steps=recipe.steps, refiner_start=recipe.refiner_start)
        at_once = bench.pictures_at_once(model, settings)
    write_dataset(
        make_samples(recipe, model, indices, batch_size=at_once),
        folder,
        first=indices.start,
        resolution=model.resolution,
        report=lambda count: bench.report("dataset_pictures", count),
    )


def _about(dataset: Dataset) -> dict[str, Any]:
    return {
        "model": dataset.model.model_dump(mode="json"),
        "recipe": dataset.recipe.model_dump(mode="json"),
    }
