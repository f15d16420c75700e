"""The cost of a plan in passes: one row going once through the UNet."""

from collections import Counter
from collections.abc import Iterable

from harness.config.plan.plan import Plan, TrainingRun

GUIDANCE_ROWS = 2
FORWARD_AND_BACKWARD = 3


def image_passes(steps: int) -> int:
    """What one image costs."""
    return steps * GUIDANCE_ROWS


def step_passes(batch_size: int, accumulated: int, *, prior: bool) -> int:
    """What one optimizer step costs; prior preservation trains on as many rows again."""
    return batch_size * accumulated * (2 if prior else 1) * FORWARD_AND_BACKWARD


def planned_passes(plan: Plan, runs: Iterable[str], arms: Iterable[tuple[str, str]]) -> int:
    """What training runs, to their last checkpoints, and draws on a split cost together on an empty store."""
    prompts = Counter[str](prompt.split for prompt in plan.sweep.prompts)
    passes = 0
    for run in (plan.runs[run_id] for run_id in runs):
        batch, accumulated = run.training.batch_size, run.training.gradient_accumulation
        passes += run.checkpoints[-1] * step_passes(batch, accumulated, prior=run.prior is not None)
    for arm_id, split in arms:
        passes += prompts[split] * len(plan.sweep.seeds) * image_passes(plan.arms[arm_id].steps)
    return passes


def runs_of_one_length(plan: Plan) -> list[TrainingRun]:
    """Runs that are not the beginning of a longer one, though the sweep varies the steps."""
    if "training.steps" not in plan.sweep.axes:
        return []
    return [run for run in plan.runs.values() if run.training.schedule.depends_on_length]
