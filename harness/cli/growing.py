"""The page of a sweep that is still being run: written again every so often, without a verdict."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from harness.engine.collect import so_far
from harness.errors import ArtifactError, HarnessError
from harness.reporting.report import write_report
from harness.reporting.report.thumbnails import Cache
from harness.store.workspace import REPORT, Workspace

SHARE = 0.05  # of the time at most goes into pages: they take it from the workers of this machine


def pause(seconds: float, took: float) -> float:
    """Seconds until the next page where the last one took so many, and at least so many are asked for."""
    return max(seconds, took * (1 - SHARE) / SHARE)


class GrowingPage:
    """Writes the page of an unfinished sweep, in a thread of its own, while something is new.

    It reads the store through a workspace of its own, as another process would.
    """

    def __init__(self, address: str, name: str, warn: Callable[[str], None]) -> None:
        self._workspace, self._name, self._warn = Workspace(address), name, warn
        self._cache: Cache = {}
        self._news = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def noticed(self) -> None:
        """Something was made since the last page."""
        self._news += 1

    @contextmanager
    def final(self) -> Iterator[None]:
        """For the block that writes the page itself; until something new is made it stays."""
        with self._lock:
            self._news = 0
            yield

    @contextmanager
    def every(self, seconds: float | None) -> Iterator[None]:
        """While the block runs, at most every so many seconds; None: never."""
        thread = threading.Thread(target=self._write_often, args=(seconds,), daemon=True)
        if seconds is not None:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            if seconds is not None:
                thread.join()

    def _write_often(self, seconds: float) -> None:
        took = 0.0
        while not self._ended.wait(pause(seconds, took)):
            with self._lock:
                if self._news:
                    self._news = 0
                    begun = time.monotonic()
                    self._write()
                    took = time.monotonic() - begun

    def _write(self) -> None:
        try:
            with suppress(ArtifactError):  # the driver finds what is damaged, and makes it again
                write_so_far(self._workspace, self._name, self._cache)
        except HarnessError as error:  # a page that cannot be written costs no result
            self._warn(f"page: {error}")
            self._ended.set()


def write_so_far(workspace: Workspace, name: str, cache: Cache) -> bool:
    """Write the page of an unfinished sweep into its folder. False where nothing was begun."""
    workspace.invalidate()
    found = so_far(workspace, name)
    if found is None:
        return False
    write_report(found, workspace, workspace.sweep(name) / REPORT, cache=cache)
    workspace.upload_sweep(name, [REPORT])
    return True
