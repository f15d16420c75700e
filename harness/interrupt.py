"""Ctrl-C: the first asks all who work to stop where nothing is lost, the second stops at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Stop = Callable[[], bool]  # true once all are to stop


def never() -> bool:
    """The `Stop` of whoever nobody interrupts."""
    return False


@contextmanager
def stop_at_ctrl_c(told: Callable[[], None]) -> Iterator[Stop]:
    """Give what says whether Ctrl-C was pressed in this block; pressed again it is a KeyboardInterrupt.

    `told` is called once, in a thread of its own, when it is pressed first: within a signal's handler nothing
    may be printed.
    """
    pressed = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        threading.Thread(target=told, daemon=True).start()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a script's job in the background
        signal.signal(signal.SIGINT, handle)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
