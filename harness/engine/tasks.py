"""The tasks of a sweep, units of dispatch: their kinds, and the order in which they start."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from harness.config.plan.cost import planned_passes
from harness.config.plan.packing import planned_packs
from harness.config.plan.plan import Plan, ResolvedArm, TrainingRun, Trial
from harness.diffusion.datasets import image_count
from harness.engine.stages.context import IMAGES_PER_BATCH


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit of dispatch: things of the store that one worker makes sure of, in this order."""

    name: str
    datasets: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    arms: tuple[tuple[str, str], ...] = ()  # (arm_id, split)


def control_tasks(plan: Plan) -> list[Task]:
    """Datasets, then controls that need no training on both splits: each made once, whatever the trials."""
    datasets = [Task(name=f"dataset {dataset_id}", datasets=(dataset_id,)) for dataset_id in plan.datasets]
    controls = [
        Task(name=f"control {arm.arm} {arm.arm_id}", arms=((arm.arm_id, "dev"), (arm.arm_id, "test")))
        for arm in plan.control_arms
    ]
    return datasets + controls


def trial_stages(plan: Plan, *, workers: int = 1) -> list[tuple[str, list[Task]]]:
    """What is carried out before the selection; the tasks of one stage wait for nothing but each other.

    `workers` are those that training runs are packed for, where `compute.pack` leaves it open.

    Training that takes several processes is a stage of its own: its task holds all of them, and drawing
    needs one.
    """
    controls, trials = control_tasks(plan), trial_tasks(plan, workers=workers)
    if plan.sweep.compute.training_workers == 1:
        return [("trials", controls + trials)]
    training = [replace(task, arms=()) for task in trials if task.runs]
    drawing = [replace(task, runs=()) for task in trials]
    return [("controls", controls), ("training", training), ("trials", drawing)]


def trial_tasks(plan: Plan, *, workers: int = 1) -> list[Task]:
    """One task per pack of training runs: train it, then draw and score the dev images of its checkpoints.

    And one per draw of trials whose adapters are files. The longest first, so that no worker is left alone
    with a long one at the end (Graham 1969).
    """
    tasks = [task_of(plan, pack) for pack in planned_packs(plan, workers=workers)]
    tasks += [
        Task(name=f"file {arm.arm} {arm.arm_id}", arms=((arm.arm_id, "dev"),)) for arm in plan.file_arms
    ]
    return sorted(tasks, key=lambda task: -planned_passes(plan, task.runs, task.arms))


def race_tasks(plan: Plan, racing: Collection[str], *, workers: int = 1) -> list[Task]:
    """The same, of these training runs alone: those that a scheduler may stop yet."""
    runs = {run_id: run for run_id, run in plan.runs.items() if run_id in racing}
    tasks = [task_of(plan, pack) for pack in planned_packs(replace(plan, runs=runs), workers=workers)]
    return sorted(tasks, key=lambda task: -planned_passes(plan, task.runs, task.arms))


def shared_out(tasks: Sequence[Task], plan: Plan, *, workers: int) -> list[Task]:
    """The tasks; where workers would be left over, some several times over, to be done together.

    Those are datasets and draws, of which each worker takes what it finds free, as many as have two batches
    each. Training is not divided.
    """
    copies = max(1, workers // len(tasks)) if tasks else 1
    return [
        task
        for copy in range(copies)
        for task in tasks
        if copy == 0 or (not task.runs and copy * 2 * IMAGES_PER_BATCH < _images(task, plan))
    ]


def _images(task: Task, plan: Plan) -> int:
    drawn = sum(len(plan.cells(plan.arms[arm_id], split)) for arm_id, split in task.arms)
    return drawn + sum(image_count(plan.datasets[dataset_id].recipe) for dataset_id in task.datasets)


def apart(plan: Plan, task: Task) -> list[Task]:
    """A pack's training runs, each as a task of its own."""
    return [task_of(plan, [plan.runs[run_id]]) for run_id in task.runs]


def task_of(plan: Plan, pack: Sequence[TrainingRun]) -> Task:
    """Train the runs, then draw and score the dev images of their checkpoints."""
    return Task(
        name=" ".join(["run", *(run.run_id for run in pack)]),
        runs=tuple(run.run_id for run in pack),
        arms=tuple((arm.arm_id, "dev") for run in pack for arm in plan.arms_of_run(run.run_id)),
    )


def confirm_tasks(plan: Plan, best: str | None) -> list[Task]:
    """Test images of the trial selected on dev, and of the controls that are drawn with adapters."""
    trial = next((trial for trial in plan.trials if trial.trial_id == best), None)
    if trial is None or not any(prompt.split == "test" for prompt in plan.sweep.prompts):
        return []
    arms = [arm for arm in arms_of_trial(plan, trial) if arm.adapters]
    return [Task(name=f"confirm {arm.arm} {arm.arm_id}", arms=((arm.arm_id, "test"),)) for arm in arms]


def trial_task(plan: Plan, trial: Trial) -> Task:
    """Everything one trial needs, its controls included, as one task."""
    arms = arms_of_trial(plan, trial)
    others = [adapter.run_id for arm in arms for adapter in arm.adapters if adapter.run_id is not None]
    runs = dict.fromkeys([*([] if trial.run_id is None else [trial.run_id]), *others])
    return Task(
        name=f"trial {trial.index} {trial.trial_id}",
        datasets=tuple(
            dict.fromkeys(dataset.dataset_id for run_id in runs for dataset in plan.runs[run_id].datasets)
        ),
        runs=tuple(runs),
        arms=tuple((arm.arm_id, "dev") for arm in arms),
    )


def arms_of_trial(plan: Plan, trial: Trial) -> list[ResolvedArm]:
    """A trial's arms in the order of the sweep."""
    return [plan.arms[arm_id] for arm_id in trial.arms.values()]
