"""A loop in this process: for a debugger, for one GPU, and to compare Ray with."""

from collections.abc import Sequence
from dataclasses import replace

from harness.config.schema.search import FifoScheduler
from harness.engine.early_stopping import Decisions
from harness.engine.executors.timeout import Raising, minutes_for, note_of
from harness.engine.stages.context import Bench
from harness.engine.tasks import Task
from harness.engine.worker import Outcome, attempt
from harness.errors import SpecError


class LocalExecutor:
    """One task after the other. An unforeseen error becomes that task's outcome; the others go on."""

    def workers(self, bench: Bench) -> int:
        """This process."""
        return 1

    def run(self, tasks: Sequence[Task], bench: Bench) -> list[Outcome]:
        """Perform all tasks.

        Raises SpecError where one training run is to take several processes, or runs are to be compared on
        their way: one after the other, the first would have nothing to be compared with.
        """
        if not isinstance(bench.plan.sweep.scheduler, FifoScheduler):
            raise SpecError(
                f"scheduler: {bench.plan.sweep.scheduler.kind} compares runs that are trained side by side, "
                "and needs --executor ray; leave --executor local out, or set scheduler.kind=fifo"
            )
        if bench.plan.sweep.compute.training_workers > 1:
            raise SpecError(
                "compute: several processes that train one trial need --executor ray; "
                "set workers_per_trial: 1 to train in this one"
            )
        outcomes = []
        for task in tasks:
            try:
                outcomes.append(_attempt(task, bench))
                if bench.stop():
                    break
            except (
                Exception
            ) as error:  # the trial's boundary: recorded here, and shown as a row with its reason
                outcomes.append(Outcome(task=task, reason=f"{type(error).__name__}: {error}"))
        return outcomes

    def race(self, tasks: Sequence[Task], bench: Bench, decisions: Decisions) -> list[Outcome]:
        """Raises SpecError, as `run` does."""
        return self.run(tasks, bench)


def _attempt(task: Task, bench: Bench) -> Outcome:
    minutes = minutes_for(task, bench.plan.sweep.compute)
    if minutes is None:
        return attempt(task, bench)
    watchdog = Raising(minutes, note_of(task, bench))
    with watchdog.running():
        workspace = bench.workspace.while_waiting(watchdog.paused)
        return attempt(task, replace(bench, workspace=workspace, step=watchdog.step))
