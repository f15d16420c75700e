"""What a sweep needs, and how much of it the store has: for `harness check` and for the time left.

Cost is counted in passes: one row going once through the UNet. An image is two rows (guidance) per
denoising step; a training step is its batch, three times (forward, and twice that for backward).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from harness.config.plan.cost import image_passes, runs_of_one_length, step_passes
from harness.config.plan.packing import planned_packs
from harness.config.plan.plan import Dataset, Plan, ResolvedArm, TrainingRun
from harness.config.plan.rungs import probe_cells, probes_of_run
from harness.config.schema.recipe import FolderRecipe
from harness.diffusion.datasets import image_count
from harness.engine.stages.context import Context, Count, Kind
from harness.engine.stages.datasets import missing_from_dataset
from harness.engine.stages.encodings import missing_texts, sees_all, texts_of, views_of
from harness.engine.stages.sampling import missing_images

LOOKS = "images of looks"


NOTHING = Count(asked=0, missing=0)


def dataset_images(ctx: Context, dataset: Dataset) -> Count:
    """Training images of one recipe. Images from a folder cost no passes."""
    asked = image_count(dataset.recipe)
    missing = missing_from_dataset(ctx.workspace, dataset)
    steps = 0 if isinstance(dataset.recipe, FolderRecipe) else dataset.recipe.steps
    return Count(asked=asked, missing=missing, passes=missing * image_passes(steps))


def training_steps(ctx: Context, run: TrainingRun) -> Count:
    """Optimizer steps of one run; what lies before a finished checkpoint is not missing."""
    finished = set(ctx.workspace.checkpoints(run.run_id))
    missing = 0
    for target in (steps for steps in run.checkpoints if steps not in finished):
        missing += target - max((steps for steps in finished if steps < target), default=0)
        finished.add(target)
    training = run.training
    passes = step_passes(training.batch_size, training.gradient_accumulation, prior=run.prior is not None)
    return Count(asked=run.checkpoints[-1], missing=missing, passes=missing * passes)


def images(ctx: Context, arm: ResolvedArm, split: str) -> Count:
    """Images of one draw on one split."""
    cells = ctx.plan.cells(arm, split)
    missing = len(missing_images(ctx, arm, cells))
    return Count(asked=len(cells), missing=missing, passes=missing * image_passes(arm.steps))


def total(counts: Iterable[Count]) -> Count:
    """The sum of counts."""
    return sum(counts, NOTHING)


def confirmation_images(plan: Plan) -> int:
    """Test images that will be drawn once a trial is selected: of all arms that needed training."""
    adapter_arms = sum(arm.needs_training for arm in plan.sweep.arms)
    return adapter_arms * len(plan.sweep.seeds) * sum(prompt.split == "test" for prompt in plan.sweep.prompts)


def looks(ctx: Context, run_id: str) -> Count:
    """Images that only the scheduler's looks at a run are at; as many as there are if it is not stopped."""
    found = NOTHING
    for arm in probes_of_run(ctx.plan, run_id):
        cells = probe_cells(ctx.plan, arm)
        missing = len(missing_images(ctx, arm, cells))
        found += Count(asked=len(cells), missing=missing, passes=missing * image_passes(arm.steps))
    return found


def inventory(ctx: Context) -> dict[str, Count]:
    """Everything the sweep asks for before it selects, by what it is; of what may be stopped, all of it."""
    plan = ctx.plan
    controls = {arm.arm_id for arm in plan.control_arms}
    probes = total(looks(ctx, run_id) for run_id in plan.runs)
    return {
        "training images": total(dataset_images(ctx, dataset) for dataset in plan.datasets.values()),
        "training steps": total(training_steps(ctx, run) for run in plan.runs.values()),
        "control images": total(
            images(ctx, arm, split) for arm in plan.control_arms for split in ("dev", "test")
        ),
        "adapter images": total(
            images(ctx, arm, "dev") for arm in plan.arms.values() if arm.arm_id not in controls
        ),
        **({LOOKS: probes} if probes.asked else {}),
    }


def encodings(ctx: Context, counts: Mapping[str, Count]) -> dict[str, Count]:
    """What is encoded once: asked for is what the store has, and what the missing work will put there."""
    drawing = any(counts[name].missing for name in ("control images", "adapter images"))
    return {"latents": _latents(ctx), "prompt embeddings": _texts(ctx, drawing=drawing)}


def _latents(ctx: Context) -> Count:
    found: dict[tuple[str, str], Count] = {}
    for run in ctx.plan.runs.values():
        for dataset, view in views_of(run):
            images = image_count(dataset.recipe)
            stored = ctx.workspace.latents(dataset.dataset_id, view).done
            if stored or (sees_all(run, images) and training_steps(ctx, run).missing):
                found[dataset.dataset_id, view] = Count(asked=images, missing=0 if stored else images)
    return total(found.values())


def _texts(ctx: Context, *, drawing: bool) -> Count:
    counts = []
    for model in {arm.model for arm in ctx.plan.arms.values()}:
        missing = len(missing_texts(ctx.workspace, ctx.plan, model))
        stored = len(texts_of(ctx.plan, model)) - missing
        counts.append(Count(asked=stored + missing * drawing, missing=missing * drawing))
    return total(counts)


def described(plan: Plan, counts: Mapping[str, Count], workers: int) -> dict[str, Any]:
    """The plan and its cost as JSON: all that `harness check` prints."""
    return {
        "name": plan.sweep.name,
        "question": plan.sweep.question,
        "trials": [
            {"index": trial.index, "trial_id": trial.trial_id, **trial.params} for trial in plan.trials
        ],
        "training_runs": len(plan.runs),
        "training_runs_of_trials": len(plan.own_runs),
        "packs": [[run.run_id for run in pack] for pack in planned_packs(plan, workers=workers)],
        "runs_of_one_length": {run.run_id: run.training.schedule.kind for run in runs_of_one_length(plan)},
        "datasets": len(plan.datasets),
        "prompts": Counter(prompt.split for prompt in plan.sweep.prompts),
        "seeds": len(plan.sweep.seeds),
        "search": plan.sweep.search.kind,
        "scheduler": plan.sweep.scheduler.kind,
        "arms": [{"name": arm.name, "is_control": arm.is_control} for arm in plan.sweep.arms],
        "confirmation_images": confirmation_images(plan),
        **{name: asdict(count) for name, count in counts.items()},
    }


def remaining(
    ctx: Context, datasets: Iterable[str], runs: Iterable[str], arms: Iterable[tuple[str, str]]
) -> dict[Kind, Count]:
    """What some tasks have to make, by the kind their workers will report it as."""
    plan = ctx.plan
    return {
        "dataset_images": total(dataset_images(ctx, plan.datasets[name]) for name in set(datasets)),
        "training_steps": total(training_steps(ctx, plan.runs[name]) for name in set(runs)),
        "images": total(images(ctx, plan.arms[name], split) for name, split in set(arms))
        + total(looks(ctx, name) for name in set(runs)),
    }
