"""The end of a task that takes longer than `compute.timeout_minutes`; waiting for others is not counted.

A task may hang where no Python runs any more: in a read from a dead file system, in a collective operation,
in a driver. So a worker of Ray is ended as a process, by a thread that needs no interpreter, and says in a
file where it was.
"""

import faulthandler
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from harness.errors import HarnessError
from harness.execution.spec import ComputeSpec
from harness.tasks import Task

# One of faulthandler's lines, and the innermost of ours among those of the thread that performs the task.
FRAME = re.compile(r'File "[^"]*(harness/[\w/]+\.py)", line (\d+) in (\w+)')
OUTERMOST = "in perform"


def minutes_for(task: Task, compute: ComputeSpec) -> float | None:
    """How long a task may take, null where there is no limit. It is told for one training run."""
    if compute.timeout_minutes is None:
        return None
    return compute.timeout_minutes * max(1, len(task.runs))


class Deadline:
    """Time for one task. `arm` sets what ends it in so many seconds, `disarm` unsets that."""

    def __init__(self, minutes: float, *, arm: Callable[[float], None], disarm: Callable[[], None]) -> None:
        self.ends_at = time.monotonic() + minutes * 60
        self._arm, self._disarm = arm, disarm

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block is to be over by then."""
        self._arm(self._left())
        try:
            yield
        finally:
            self._disarm()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within `running`: the time that this block takes is not counted."""
        began = time.monotonic()
        self._disarm()
        try:
            yield
        finally:
            self.ends_at += time.monotonic() - began
            self._arm(self._left())

    def _left(self) -> float:
        return max(self.ends_at - time.monotonic(), 0.001)


def exception_after(minutes: float) -> Deadline:
    """Raises HarnessError in this process's main thread; what runs outside Python is not interrupted."""

    def raise_it(number: int, frame: FrameType | None) -> None:
        stack = ""
        while frame is not None:  # innermost first, as faulthandler has it
            code = frame.f_code
            stack += f'File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}\n'
            frame = frame.f_back
        raise HarnessError(too_long(minutes, stack))

    def arm(seconds: float) -> None:
        signal.signal(signal.SIGALRM, raise_it)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    return Deadline(minutes, arm=arm, disarm=disarm)


@contextmanager
def end_of_process_after(minutes: float, note: Path) -> Iterator[Deadline]:
    """Ends this process, whatever it is at. `note` then holds where its threads were; else it is empty."""
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.open("w") as file:

        def arm(seconds: float) -> None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)

        yield Deadline(minutes, arm=arm, disarm=faulthandler.cancel_dump_traceback_later)


def too_long(minutes: float, stacks: str) -> str:
    """The reason, in one line. `stacks` are the threads', innermost frames first, as faulthandler writes."""
    performing = next((stack for stack in stacks.split("\n\n") if OUTERMOST in stack), stacks)
    at = FRAME.search(performing)
    where = f"; it was at {at[1]} line {at[2]}, {at[3]}" if at else ""
    return f"it took longer than compute.timeout_minutes: {minutes:g}{where}"
