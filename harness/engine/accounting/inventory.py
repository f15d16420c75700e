"""What a sweep asks for, and how much of it the store has: for `harness check` and for time left.

Cost is counted in passes: one row going once through the UNet. A picture is two rows (guidance) per
denoising step; a training step is its batch, three times (forward, and twice that for backward).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from harness.config.plan.cost import picture_passes, runs_of_one_length, step_passes
from harness.config.plan.packing import planned_packs
from harness.config.plan.plan import Dataset, Draw, Plan, TrainingRun
from harness.config.plan.rungs import probe_cells, probes_of_run
from harness.config.schema.recipe import FolderRecipe
from harness.diffusion.datasets import picture_count
from harness.engine.stages.context import Bench, Count, Kind
from harness.engine.stages.datasets import missing_from_dataset
from harness.engine.stages.encodings import missing_texts, sees_all, texts_of, views_of
from harness.engine.stages.sampling import missing_pictures

LOOKS = "pictures of looks"


NOTHING = Count(asked=0, missing=0)


def dataset_pictures(bench: Bench, dataset: Dataset) -> Count:
    """Training pictures of one recipe. Pictures from a folder cost no passes."""
    asked = picture_count(dataset.recipe)
    missing = missing_from_dataset(bench.workspace, dataset)
    steps = 0 if isinstance(dataset.recipe, FolderRecipe) else dataset.recipe.steps
    return Count(asked=asked, missing=missing, passes=missing * picture_passes(steps))


def training_steps(bench: Bench, run: TrainingRun) -> Count:
    """Optimizer steps of one run; what lies before a finished checkpoint is not missing."""
    finished = set(bench.workspace.snapshots(run.run_id))
    missing = 0
    for target in (steps for steps in run.snapshots if steps not in finished):
        missing += target - max((steps for steps in finished if steps < target), default=0)
        finished.add(target)
    training = run.training
    passes = step_passes(training.batch_size, training.gradient_accumulation, prior=run.prior is not None)
    return Count(asked=run.snapshots[-1], missing=missing, passes=missing * passes)


def pictures(bench: Bench, draw: Draw, split: str) -> Count:
    """Pictures of one draw on one split."""
    cells = bench.plan.cells(draw, split)
    missing = len(missing_pictures(bench, draw, cells))
    return Count(asked=len(cells), missing=missing, passes=missing * picture_passes(draw.steps))


def total(counts: Iterable[Count]) -> Count:
    """The sum of counts."""
    return sum(counts, NOTHING)


def confirmation_pictures(plan: Plan) -> int:
    """Test pictures that will be drawn once a trial is selected: of all arms that needed training."""
    adapter_arms = sum(arm.needs_training for arm in plan.sweep.arms)
    return adapter_arms * len(plan.sweep.seeds) * sum(prompt.split == "test" for prompt in plan.sweep.prompts)


def looks(bench: Bench, run_id: str) -> Count:
    """Pictures that only the scheduler's looks at a run are at; as many as there are if it is not stopped."""
    found = NOTHING
    for draw in probes_of_run(bench.plan, run_id):
        cells = probe_cells(bench.plan, draw)
        missing = len(missing_pictures(bench, draw, cells))
        found += Count(asked=len(cells), missing=missing, passes=missing * picture_passes(draw.steps))
    return found


def inventory(bench: Bench) -> dict[str, Count]:
    """Everything the sweep asks for before it selects, by what it is; of what may be stopped, all of it."""
    plan = bench.plan
    controls = {draw.draw_id for draw in plan.control_draws}
    probes = total(looks(bench, run_id) for run_id in plan.runs)
    return {
        "training pictures": total(dataset_pictures(bench, dataset) for dataset in plan.datasets.values()),
        "training steps": total(training_steps(bench, run) for run in plan.runs.values()),
        "control pictures": total(
            pictures(bench, draw, split) for draw in plan.control_draws for split in ("dev", "test")
        ),
        "adapter pictures": total(
            pictures(bench, draw, "dev") for draw in plan.draws.values() if draw.draw_id not in controls
        ),
        **({LOOKS: probes} if probes.asked else {}),
    }


def encodings(bench: Bench, counts: Mapping[str, Count]) -> dict[str, Count]:
    """What is encoded once: asked for is what the store has, and what the missing work will put there."""
    drawing = any(counts[name].missing for name in ("control pictures", "adapter pictures"))
    return {"latents": _latents(bench), "prompt embeddings": _texts(bench, drawing=drawing)}


def _latents(bench: Bench) -> Count:
    found: dict[tuple[str, str], Count] = {}
    for run in bench.plan.runs.values():
        for dataset, view in views_of(run):
            pictures = picture_count(dataset.recipe)
            stored = bench.workspace.latents(dataset.dataset_id, view).done
            if stored or (sees_all(run, pictures) and training_steps(bench, run).missing):
                found[dataset.dataset_id, view] = Count(asked=pictures, missing=0 if stored else pictures)
    return total(found.values())


def _texts(bench: Bench, *, drawing: bool) -> Count:
    counts = []
    for model in {draw.model for draw in bench.plan.draws.values()}:
        missing = len(missing_texts(bench.workspace, bench.plan, model))
        stored = len(texts_of(bench.plan, model)) - missing
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
        "training_runs_of_trials": len({trial.run_id for trial in plan.trials}),
        "packs": [[run.run_id for run in pack] for pack in planned_packs(plan, workers=workers)],
        "runs_of_one_length": {run.run_id: run.training.schedule.kind for run in runs_of_one_length(plan)},
        "datasets": len(plan.datasets),
        "prompts": Counter(prompt.split for prompt in plan.sweep.prompts),
        "seeds": len(plan.sweep.seeds),
        "search": plan.sweep.search.kind,
        "scheduler": plan.sweep.scheduler.kind,
        "arms": [{"name": arm.name, "is_control": arm.is_control} for arm in plan.sweep.arms],
        "confirmation_pictures": confirmation_pictures(plan),
        **{name: asdict(count) for name, count in counts.items()},
    }


def remaining(
    bench: Bench, datasets: Iterable[str], runs: Iterable[str], draws: Iterable[tuple[str, str]]
) -> dict[Kind, Count]:
    """What some tasks have to make, by the kind their workers will report it as."""
    plan = bench.plan
    return {
        "dataset_pictures": total(dataset_pictures(bench, plan.datasets[name]) for name in set(datasets)),
        "training_steps": total(training_steps(bench, plan.runs[name]) for name in set(runs)),
        "pictures": total(pictures(bench, plan.draws[name], split) for name, split in set(draws))
        + total(looks(bench, name) for name in set(runs)),
    }
