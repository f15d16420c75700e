"""The end of a task that takes longer than `compute.timeout_minutes`.

The task labels what it does (`Context.step`). The watchdog keeps the last step in a file and, when
the time is over, adds the stacks of all threads: the step is the reason, the stacks are for a developer.
"""

import faulthandler
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from harness.config.schema.compute import ComputeConfig
from harness.engine.stages.context import Context
from harness.engine.tasks import Task, TrainingTask
from harness.errors import HarnessError

NOTES = "timeouts"  # in a sweep's folder


def minutes_for(task: Task, compute: ComputeConfig) -> float | None:
    """How long a task may take, None without a limit. The limit is that of one training run."""
    if compute.timeout_minutes is None:
        return None
    return compute.timeout_minutes * (len(task.runs) if isinstance(task, TrainingTask) else 1)


def note_of(task: Task, ctx: Context) -> Path:
    """The file of a task's last step and stacks."""
    name = task.name[:60].replace(" ", "-")  # of a pack the first three runs
    return ctx.workspace.sweep(ctx.sweep) / NOTES / f"{name}.txt"


def too_long(minutes: float, note: Path) -> str | None:
    """Why a task was ended, in one line; None if its time was not over."""
    step, _, stacks = note.read_text().partition("\n") if note.is_file() else ("", "", "")
    if not stacks:
        return None
    return f"it took longer than {minutes:g} min (compute.timeout_minutes), at {step!r}; its stacks: {note}"


class Watchdog(ABC):
    """Time for one task. `note` is removed if the task ends within it."""

    def __init__(self, minutes: float, note: Path) -> None:
        self.minutes, self.note = minutes, note

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block is to be over by then."""
        self.note.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.note.open("w") as self._file:
                self.step("start")
                self._arm(self.minutes * 60)
                try:
                    yield
                finally:
                    self._disarm()
        finally:
            if too_long(self.minutes, self.note) is None:
                self.note.unlink()

    def step(self, label: str) -> None:
        """Within `running`: what is done from here on."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{label}\n")
        self._file.flush()

    @abstractmethod
    def _arm(self, seconds: float) -> None: ...

    @abstractmethod
    def _disarm(self) -> None: ...


class EndingTheProcess(Watchdog):
    """Ends this process from a thread without Python: a task may hang in a read, a collective, a driver."""

    def _arm(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def _disarm(self) -> None:
        faulthandler.cancel_dump_traceback_later()


class Raising(Watchdog):
    """Raises HarnessError in this process's main thread; what runs outside Python is not interrupted."""

    def _arm(self, seconds: float) -> None:
        signal.signal(signal.SIGALRM, self._raise)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _disarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(file=self._file)
        raise HarnessError(too_long(self.minutes, self.note))
