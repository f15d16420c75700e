"""Which tasks there are, and how they are divided."""

from pathlib import Path

from harness.config.schema.model import SdxlModel
from harness.engine.tasks import control_tasks, shared_out, trial_tasks
from tests.sweeps.small import small_plan


def test_where_workers_are_left_over_several_draw_together(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    plan = small_plan(tmp_path, tiny_config, tiny_clip, seeds=list(range(20)))
    (arm, *_) = plan.control_arms
    many, few = (task for task in control_tasks(plan) if task.arms), control_tasks(plan)[:1]
    control = next(task for task in many if task.arms[0][0] == arm.arm_id)
    images = sum(len(plan.cells(arm, split)) for split in ("dev", "test"))
    assert images == 60  # less than four workers have two batches of
    tasks = [*few, control, *trial_tasks(plan)]
    assert shared_out(tasks, plan, workers=len(tasks)) == tasks
    shared = shared_out(tasks, plan, workers=100)
    assert shared[: len(tasks)] == tasks  # first everything, then what is divided
    assert shared[len(tasks) :] == 3 * [control]
    assert shared_out([control], plan, workers=2) == 2 * [control]
    assert shared_out([], plan, workers=2) == []
