"""A loop in this process: for a debugger, for one GPU, and to compare Ray with."""

from dataclasses import replace

from harness.engine.executors.timeout import Raising, minutes_for, note_of
from harness.engine.outcomes import Outcome, failure
from harness.engine.queue import Queue
from harness.engine.stages.context import Context
from harness.engine.tasks import Task
from harness.engine.worker import attempt
from harness.errors import ConfigError


class LocalExecutor:
    """One task after the other. An unforeseen error becomes that task's outcome; the others go on."""

    def workers(self, ctx: Context) -> int:
        """This process."""
        return 1

    def carry_out(self, queue: Queue, ctx: Context) -> None:
        """Run all tasks.

        Raises ConfigError if one training run is to take several processes, or if runs race: one after the
        other, the first would have nothing to be compared with.
        """
        if ctx.compute.training_workers > 1:
            raise ConfigError(
                "compute: several processes that train one trial need --executor ray; "
                "set workers_per_trial: 1 to train in this one"
            )
        while not queue.finished:
            if queue.race is not None:
                kind = queue.race.plan.sweep.scheduler.kind
                raise ConfigError(
                    f"scheduler: {kind} compares runs that are trained side by side, "
                    "and needs --executor ray; leave --executor local out, or set scheduler.kind=fifo"
                )
            while (task := queue.next()) is not None:
                queue.done(_outcome(task, ctx))
            queue.advance()


def _outcome(task: Task, ctx: Context) -> Outcome:
    minutes = minutes_for(task, ctx.compute)
    try:
        if minutes is None:
            return attempt(task, ctx)
        watchdog = Raising(minutes, note_of(task, ctx))
        with watchdog.running():
            return attempt(task, replace(ctx, step=watchdog.step))
    except Exception as error:  # the task's boundary: recorded here, and shown as a row with its reason
        return failure(task, f"{type(error).__name__}: {error}")
