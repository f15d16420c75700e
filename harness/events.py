"""What befell a sweep besides what was asked for: counted by its driver, shown in the report."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from harness.bench import Event
from harness.stage import write_json
from harness.workspace import Workspace

EVENTS = "events.json"


class Events:
    """Counts by kind over all calls of a sweep, written down at once, for the next driver."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        """Nothing is read or written before `driving`."""
        self._workspace, self._name = workspace, name
        self._driven = False
        self._counted: dict[str, dict[str, Any]] = {}

    @contextmanager
    def driving(self) -> Iterator[None]:
        """The time of one call. An earlier one that came to no end of any kind lost its driver."""
        self._read()
        if self._driven:
            self.add("driver lost", 1)
        self._driven = True
        self._write()
        try:
            yield
        finally:
            self._driven = False
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
            known = json.loads((self._workspace.fetch_sweep(self._name) / EVENTS).read_text())
            self._driven, self._counted = bool(known["driven"]), dict(known["events"])
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def _write(self) -> None:
        folder = self._workspace.sweep(self._name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / EVENTS, {"driven": self._driven, "events": self._counted})
        self._workspace.upload_sweep(self._name, [EVENTS])
