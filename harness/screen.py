"""What shows how far a sweep is. It may be on another machine than what it shows."""

from collections.abc import Mapping
from typing import Protocol

from harness.bench import Event, Kind
from harness.inventory import Count


class Screen(Protocol):
    """A terminal, or what stands in for it where the driver is elsewhere."""

    def begin(self, stage: str, asked: Mapping[Kind, Count]) -> None:
        """A stage starts; so much is to be made in it."""
        ...

    def report(self, kind: Kind | Event, count: int) -> None:
        """So much more has been made."""
        ...

    def warn(self, text: str) -> None:
        """One line about something that costs no result."""
        ...
