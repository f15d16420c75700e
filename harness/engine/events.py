"""Incidents of a sweep and the time it took: kept by its driver over all calls, shown in the report."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from harness.engine.stages.context import Event, Kind
from harness.store.artifact import read_json, write_json
from harness.store.workspace import Workspace

EVENTS = "events.json"
SAVE_EVERY_SECONDS = 60.0


class Events:
    """Counts by kind over all calls of a sweep, written down at once, for the next driver."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        """Nothing is read or written before `driving`."""
        self._workspace, self._name = workspace, name
        self._driven = False
        self._counted: dict[str, dict[str, Any]] = {}
        self._earlier = 0.0  # seconds of earlier calls
        self._made = Counter[str]()  # in this call, by kind
        self._began = self._saved = time.monotonic()

    @contextmanager
    def driving(self) -> Iterator[None]:
        """The time of one call. An earlier one without an end lost its driver."""
        self._read()
        if self._driven:
            self.add("driver lost", 1)
        self._driven = True
        self._began = time.monotonic()
        self._write()
        try:
            yield
        finally:
            self._driven = False
            self._write()

    @property
    def seconds(self) -> float:
        """Wall time of the sweep's drivers so far, summed over all calls that had something to do.

        The time between two calls is not in it. Of a driver that was killed, up to its last minute is lost.
        """
        return self._earlier + time.monotonic() - self._began

    def made(self, kind: Kind, count: int) -> None:
        """So much more was made. Written down with the time so far, at most once a minute."""
        self._made[kind] += count
        if time.monotonic() - self._saved > SAVE_EVERY_SECONDS:
            self._write()

    def add(self, event: Event, count: int) -> None:
        """So many more of them."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = self._counted.setdefault(event, {"count": 0, "first": now})
        known.update(count=known["count"] + count, last=now)
        self._write()

    def rows(self) -> list[dict[str, Any]]:
        """One mapping per kind, as `sweep.json` has them: what, count, first, last (the driver's clock)."""
        return [{"what": what, **facts} for what, facts in self._counted.items()]

    def _read(self) -> None:
        """A file that cannot be read counts as none."""
        try:
            known = read_json(self._workspace.fetch_sweep(self._name) / EVENTS)
            driven, counted, seconds = bool(known["driven"]), dict(known["events"]), float(known["seconds"])
            self._driven, self._counted, self._earlier = driven, counted, seconds
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def _write(self) -> None:
        folder = self._workspace.sweep(self._name)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "driven": self._driven,
            "seconds": self.seconds,
            "events": self._counted,
            "call": {"seconds": time.monotonic() - self._began, "made": self._made},
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(folder / EVENTS, content)
        self._saved = time.monotonic()
        self._workspace.upload_sweep(self._name, [EVENTS])
