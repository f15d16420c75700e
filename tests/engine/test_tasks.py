"""Which tasks there are: each artifact has one that makes it, and waits for what it is made of."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.engine.stages.context import Context
from harness.engine.tasks import (
    IMAGES_PER_TASK,
    DatasetTask,
    ImagesTask,
    PartsTask,
    Task,
    TextsTask,
    TrainingTask,
    Wish,
    confirm_tasks,
    missing_tasks,
)
from harness.engine.worker import run_task
from harness.store.workspace import Workspace
from tests.sweeps.small import PLAIN, small_plan


@pytest.fixture
def plan(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> Plan:
    return small_plan(tmp_path, tiny_config, tiny_clip, seeds=list(range(20)))


def tasks_of(plan: Plan, root: Path, workers: int = 1, **wish: Any) -> list[Task]:
    return missing_tasks(Wish(plan=plan, workers=lambda: workers, **wish), Workspace(root))


def cells_of(tasks: list[Task]) -> Counter[str]:
    images = [task for task in tasks if isinstance(task, ImagesTask)]
    return Counter(cell.image_id for task in images for _, cells in task.wanted for cell in cells)


def test_equal_arms_of_the_selected_trial_are_generated_once(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    """As where a matched control is found at the very guidance of another control."""
    arms = [
        {"name": "baseline"},
        *({"name": name, "adapters": [{"recipe": PLAIN}]} for name in ("sham", "twin")),
        {"name": "lora", "adapters": [{"scale": 1.0}]},
    ]
    analysis = {"primary": "clip_score", "control": "sham"}
    plan = small_plan(tmp_path, tiny_config, tiny_clip, arms=arms, analysis=analysis)
    workspace, trial = Workspace(tmp_path / "w"), plan.trials[0]
    assert trial.arms["sham"] == trial.arms["twin"]
    for task in missing_tasks(Wish(plan=plan, workers=lambda: 1), workspace):
        if not isinstance(task, ImagesTask):
            run_task(task, Context.of(plan, workspace.root, lambda *_: None))
    confirmed = cells_of(confirm_tasks(Wish(plan=plan, workers=lambda: 2), workspace, trial.trial_id))
    assert set(confirmed.values()) == {1} and len(confirmed) == 2 * 2  # two arms, two seeds


@pytest.mark.parametrize("workers", [1, 3, 100])
def test_everything_is_made_by_one_task_after_what_it_needs(plan: Plan, tmp_path: Path, workers: int) -> None:
    tasks = tasks_of(plan, tmp_path / "w", workers)
    made = Counter(name for task in tasks for name in task.makes)
    assert set(made.values()) == {1}
    images = cells_of(tasks)
    assert set(images.values()) == {1}
    wanted = [plan.cells(arm, "dev") for arm in plan.arms.values()]
    wanted += [plan.cells(arm, "test") for arm in plan.control_arms]
    assert images.keys() == {cell.image_id for cells in wanted for cell in cells}
    seen: set[str] = set()
    for task in tasks:
        assert task.needs <= seen, "the order of the list is one in which one worker can take them"
        seen |= {*task.makes}
    kinds = [type(task) for task in tasks]
    assert kinds.count(DatasetTask) == len(plan.datasets) and kinds.count(TextsTask) == 1
    assert all(task.needs for task in tasks if isinstance(task, DatasetTask | TrainingTask | ImagesTask))


def test_many_images_are_divided_among_the_workers(plan: Plan, tmp_path: Path) -> None:
    sizes = {}
    for workers in (1, 8):
        tasks = tasks_of(plan, tmp_path / "w", workers)
        sizes[workers] = [
            sum(len(cells) for _, cells in task.wanted) for task in tasks if isinstance(task, ImagesTask)
        ]
    assert sum(sizes[1]) == sum(sizes[8]) and len(sizes[8]) > len(sizes[1])
    assert max(sizes[1]) <= IMAGES_PER_TASK


def test_what_is_there_is_not_made_again(plan: Plan, tmp_path: Path) -> None:
    """A part of each: an image of an arm, a part of a dataset."""
    tasks = tasks_of(plan, tmp_path / "w")
    ctx = Context.of(plan, tmp_path / "w", lambda *_: None)
    part = next(task for task in tasks if isinstance(task, PartsTask))
    run_task(part, ctx)
    left = tasks_of(plan, tmp_path / "w")
    assert part.name not in {task.name for task in left}
    texts = next(task for task in tasks if isinstance(task, TextsTask))
    images = next(task for task in tasks if isinstance(task, ImagesTask) and len(task.needs) == 1)
    run_task(texts, ctx)
    run_task(images, ctx)
    left = tasks_of(plan, tmp_path / "w")
    assert not [task for task in left if isinstance(task, TextsTask)]
    done = cells_of([images])
    assert cells_of(left) + done == cells_of(tasks)


def test_of_what_is_lost_only_what_needs_it_is_left_out(plan: Plan, tmp_path: Path) -> None:
    tasks = tasks_of(plan, tmp_path / "w")
    training = next(task for task in tasks if isinstance(task, TrainingTask))
    images = next(task for task in tasks if isinstance(task, ImagesTask) and task.needs & {*training.makes})
    lost = next(name for name in training.makes if name in images.needs)
    left = images.without(lost)
    kept = set() if left is None else {*left.makes}
    for arm, _ in images.wanted:
        needs = {f"checkpoint {a.run_id} {a.steps}" for a in arm.adapters}
        assert (images.made_of[arm.arm_id] in kept) == (lost not in needs)
    (dataset,) = {*training.needs} & {f"dataset {training.runs[0].dataset.dataset_id}"}
    rest = training.without(dataset)
    gone = {run.run_id for run in training.runs if run.dataset.dataset_id == dataset.split()[1]}
    assert gone
    left_runs = set() if not isinstance(rest, TrainingTask) else {run.run_id for run in rest.runs}
    assert left_runs == {run.run_id for run in training.runs} - gone


def test_failed_subjects_are_left_out_and_racing_runs_come_alone(plan: Plan, tmp_path: Path) -> None:
    (own,) = plan.own_runs
    racing = tasks_of(plan, tmp_path / "w", racing=[own])
    assert [run.run_id for task in racing if isinstance(task, TrainingTask) for run in task.runs] == [own]
    failed = tasks_of(plan, tmp_path / "w", failed=[own])
    assert own not in {run.run_id for task in failed if isinstance(task, TrainingTask) for run in task.runs}
    needing = {arm.arm_id for arm in plan.arms.values() if any(a.run_id == own for a in arm.adapters)}
    subjects = {subject for task in failed if isinstance(task, ImagesTask) for subject in task.subjects}
    assert needing and subjects.isdisjoint(needing)
