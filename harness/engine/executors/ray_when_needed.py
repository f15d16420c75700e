"""Ray Tune, imported when there is something to do: a finished sweep is read in less time."""

from contextlib import ExitStack
from typing import Any

from harness.engine.queue import Executor, Queue
from harness.engine.stages.context import Context


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

    def carry_out(self, queue: Queue, ctx: Context) -> None:
        """Run all tasks."""
        self._needed().carry_out(queue, ctx)

    def _needed(self) -> Executor:
        if self._executor is None:
            from harness.engine.executors.ray_tune import RayTuneExecutor

            self._executor = self._block.enter_context(RayTuneExecutor(self.address))
        return self._executor
