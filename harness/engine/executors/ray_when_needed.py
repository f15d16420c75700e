"""Ray Tune, imported when there is something to do: a finished sweep is read in less time."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from harness.engine.early_stopping import Decisions
from harness.engine.stages.context import Context
from harness.engine.tasks import Task
from harness.engine.worker import Executor, Outcome


class RayWhenNeeded:
    """As `RayTuneExecutor`, for the time of a block."""

    def __init__(self, address: str | None) -> None:
        """Imports nothing and connects to nothing."""
        self.address = address
        self._block = ExitStack()
        self._executor: Executor | None = None

    def __enter__(self) -> "RayWhenNeeded":
        """Nothing is imported before there is something to do."""
        return self

    def __exit__(self, *raised: Any) -> None:
        """Leave Ray, if it was needed."""
        self._block.__exit__(*raised)

    def workers(self, ctx: Context) -> int:
        """How many tasks are carried out side by side."""
        return self._needed().workers(ctx)

    def run(self, tasks: Sequence[Task], ctx: Context) -> list[Outcome]:
        """Perform all tasks."""
        return self._needed().run(tasks, ctx)

    def race(self, tasks: Sequence[Task], ctx: Context, decisions: Decisions) -> list[Outcome]:
        """Perform tasks of one training run each, and stop those that the scheduler says."""
        return self._needed().race(tasks, ctx, decisions)

    def _needed(self) -> Executor:
        if self._executor is None:
            from harness.engine.executors.ray_tune import RayTuneExecutor

            self._executor = self._block.enter_context(RayTuneExecutor(self.address))
        return self._executor
