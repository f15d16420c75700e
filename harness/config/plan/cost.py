"""The cost of a plan in passes: one row going once through the UNet."""

from harness.config.plan.plan import Plan, TrainingRun

GUIDANCE_ROWS = 2
FORWARD_AND_BACKWARD = 3


def image_passes(steps: int) -> int:
    """What one image costs."""
    return steps * GUIDANCE_ROWS


def step_passes(batch_size: int, accumulated: int, *, prior: bool) -> int:
    """What one optimizer step costs; prior preservation trains on as many rows again."""
    return batch_size * accumulated * (2 if prior else 1) * FORWARD_AND_BACKWARD


def run_passes(run: TrainingRun) -> int:
    """What a training run costs, to its last checkpoint."""
    training = run.training
    per_step = step_passes(training.batch_size, training.gradient_accumulation, prior=run.prior is not None)
    return run.checkpoints[-1] * per_step


def runs_of_one_length(plan: Plan) -> list[TrainingRun]:
    """Runs that are not the beginning of a longer one, though the sweep varies the steps."""
    if "training.steps" not in plan.sweep.axes:
        return []
    return [run for run in plan.runs.values() if run.training.schedule.depends_on_length]
