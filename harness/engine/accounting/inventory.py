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
from harness.config.plan.rungs import rung_cells, rung_only_arms
from harness.config.schema.recipe import FolderRecipe
from harness.diffusion.datasets import image_count
from harness.engine.stages.context import Count, Kind
from harness.engine.stages.datasets import missing_from_dataset, parts_count, parts_of
from harness.engine.stages.encodings import missing_texts, texts_of, views_of, worth_encoding
from harness.engine.stages.sampling import missing_images
from harness.engine.tasks import DatasetTask, ImagesTask, PartsTask, Task, TrainingTask, task_passes
from harness.store.workspace import Workspace

RUNGS = "images at rungs"


NOTHING = Count(asked=0, missing=0)


def dataset_images(workspace: Workspace, dataset: Dataset) -> Count:
    """Training images of one recipe. Images from a folder cost no passes."""
    asked = image_count(dataset.recipe)
    missing = missing_from_dataset(workspace, dataset)
    steps = 0 if isinstance(dataset.recipe, FolderRecipe) else dataset.recipe.steps
    return Count(asked=asked, missing=missing, passes=missing * image_passes(steps))


def training_steps(workspace: Workspace, run: TrainingRun) -> Count:
    """Optimizer steps of one run; what lies before a finished checkpoint is not missing."""
    finished = set(workspace.checkpoints(run.run_id))
    missing = 0
    for target in (steps for steps in run.checkpoints if steps not in finished):
        missing += target - max((steps for steps in finished if steps < target), default=0)
        finished.add(target)
    training = run.training
    passes = step_passes(training.batch_size, training.gradient_accumulation, prior=run.prior is not None)
    return Count(asked=run.checkpoints[-1], missing=missing, passes=missing * passes)


def images(plan: Plan, workspace: Workspace, arm: ResolvedArm, split: str) -> Count:
    """Images of one arm on one split."""
    cells = plan.cells(arm, split)
    missing = len(missing_images(workspace, arm, cells))
    return Count(asked=len(cells), missing=missing, passes=missing * image_passes(arm.steps))


def total(counts: Iterable[Count]) -> Count:
    """The sum of counts."""
    return sum(counts, NOTHING)


def confirmation_images(plan: Plan) -> int:
    """Test images that will be generated once a trial is selected."""
    arms = sum(arm.waits_for_selection for arm in plan.sweep.arms)
    return arms * len(plan.sweep.seeds) * sum(prompt.split == "test" for prompt in plan.sweep.prompts)


def rungs(plan: Plan, workspace: Workspace, run_id: str) -> Count:
    """Images of a run's rungs alone; as many as there are if it is not stopped."""
    found = NOTHING
    for arm in rung_only_arms(plan, run_id):
        cells = rung_cells(plan, arm)
        missing = len(missing_images(workspace, arm, cells))
        found += Count(asked=len(cells), missing=missing, passes=missing * image_passes(arm.steps))
    return found


def inventory(plan: Plan, workspace: Workspace) -> dict[str, Count]:
    """Everything the sweep asks for before it selects, by what it is; of what may be stopped, all of it."""
    controls = {arm.arm_id for arm in plan.control_arms}
    at_rungs = total(rungs(plan, workspace, run_id) for run_id in plan.runs)
    return {
        "training images": total(dataset_images(workspace, dataset) for dataset in plan.datasets.values()),
        "training steps": total(training_steps(workspace, run) for run in plan.runs.values()),
        "control images": total(
            images(plan, workspace, arm, split) for arm in plan.control_arms for split in ("dev", "test")
        ),
        "adapter images": total(
            images(plan, workspace, arm, "dev") for arm in plan.arms.values() if arm.arm_id not in controls
        ),
        **({RUNGS: at_rungs} if at_rungs.asked else {}),
    }


def encodings(plan: Plan, workspace: Workspace, counts: Mapping[str, Count]) -> dict[str, Count]:
    """What is encoded once: asked for is what the store has, and what the missing work will put there."""
    generating = any(counts[name].missing for name in ("control images", "adapter images"))
    return {
        "latents": _latents(plan, workspace),
        "prompt embeddings": _texts(plan, workspace, generating=generating),
    }


def _latents(plan: Plan, workspace: Workspace) -> Count:
    found: dict[tuple[str, str], Count] = {}
    for run in plan.runs.values():
        for dataset, view in views_of(run):
            images = image_count(dataset.recipe)
            stored = workspace.latents(dataset.dataset_id, view).done
            if stored or (worth_encoding(run, dataset) and training_steps(workspace, run).missing):
                found[dataset.dataset_id, view] = Count(asked=images, missing=0 if stored else images)
    return total(found.values())


def _texts(plan: Plan, workspace: Workspace, *, generating: bool) -> Count:
    counts = []
    for model in {arm.model for arm in plan.arms.values()}:
        missing = len(missing_texts(workspace, plan, model))
        stored = len(texts_of(plan, model)) - missing
        counts.append(Count(asked=stored + missing * generating, missing=missing * generating))
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


def remaining(plan: Plan, workspace: Workspace, tasks: Iterable[Task]) -> dict[Kind, Count]:
    """What tasks have to make, by the kind their workers will report it as."""
    images, datasets, runs, at_rungs = NOTHING, NOTHING, NOTHING, NOTHING
    arms: set[str] = set()
    for task in tasks:
        match task:
            case PartsTask():
                count = parts_count(task.dataset, task.parts)
                datasets += Count(asked=count, missing=count, passes=task_passes(task))
            case DatasetTask(dataset=dataset) if not parts_of(dataset):
                datasets += dataset_images(workspace, dataset)
            case TrainingTask():
                runs += total(training_steps(workspace, run) for run in task.runs)
                reporting = dict.fromkeys(rung.run_id for rung in task.rungs)
                at_rungs += total(rungs(plan, workspace, run_id) for run_id in reporting)
            case ImagesTask(wanted=wanted):
                arms |= {arm.arm_id for arm, cells in wanted if any(cell.split == "dev" for cell in cells)}
                for arm, cells in wanted:
                    missing = len(missing_images(workspace, arm, cells))
                    images += Count(asked=missing, missing=missing, passes=missing * image_passes(arm.steps))
    trials = sum(plan.trials_ending_with[arm_id] for arm_id in arms)
    return {
        "dataset_images": datasets,
        "training_steps": runs,
        "images": images + at_rungs,
        "trials": Count(asked=trials, missing=trials),
    }
