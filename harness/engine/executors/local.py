"""A loop in this process: for a debugger, for one GPU, and to compare Ray with."""

from collections.abc import Sequence
from dataclasses import replace

from harness.config.schema.search import FifoScheduler
from harness.engine.early_stopping import Decisions
from harness.engine.executors.timeout import Raising, minutes_for, note_of
from harness.engine.stages.context import Context
from harness.engine.tasks import Task
from harness.engine.worker import Outcome, attempt
from harness.errors import ConfigError


class LocalExecutor:
    """One task after the other. An unforeseen error becomes that task's outcome; the others go on."""

    def workers(self, ctx: Context) -> int:
        """This process."""
        return 1

    def run(self, tasks: Sequence[Task], ctx: Context) -> list[Outcome]:
        """Perform all tasks.

        Raises ConfigError where one training run is to take several processes, or runs are to be compared on
        their way: one after the other, the first would have nothing to be compared with.
        """
        if not isinstance(ctx.plan.sweep.scheduler, FifoScheduler):
            raise ConfigError(
                f"scheduler: {ctx.plan.sweep.scheduler.kind} compares runs that are trained side by side, "
                "and needs --executor ray; leave --executor local out, or set scheduler.kind=fifo"
            )
        if ctx.plan.sweep.compute.training_workers > 1:
            raise ConfigError(
                "compute: several processes that train one trial need --executor ray; "
                "set workers_per_trial: 1 to train in this one"
            )
        outcomes = []
        for task in tasks:
            try:
                outcomes.append(_attempt(task, ctx))
                if ctx.stop():
                    break
            except (
                Exception
            ) as error:  # the trial's boundary: recorded here, and shown as a row with its reason
                outcomes.append(Outcome(task=task, reason=f"{type(error).__name__}: {error}"))
        return outcomes

    def race(self, tasks: Sequence[Task], ctx: Context, decisions: Decisions) -> list[Outcome]:
        """Raises ConfigError, as `run` does."""
        return self.run(tasks, ctx)


def _attempt(task: Task, ctx: Context) -> Outcome:
    minutes = minutes_for(task, ctx.plan.sweep.compute)
    if minutes is None:
        return attempt(task, ctx)
    watchdog = Raising(minutes, note_of(task, ctx))
    with watchdog.running():
        workspace = ctx.workspace.while_waiting(watchdog.paused)
        return attempt(task, replace(ctx, workspace=workspace, step=watchdog.step))
