"""Two ways side by side: rounds in turn, so that both meet the same machine; medians over the rounds."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds: by the clock on the wall, and of this process on all processors (other work adds little)."""

    wall: float
    processor: float

    def since(self, start: "Spent", *, items: int) -> "Spent":
        """What each item took from `start` to here."""
        return Spent(
            wall=(self.wall - start.wall) / items, processor=(self.processor - start.processor) / items
        )


@dataclass(frozen=True, kw_only=True)
class Way:
    """A name, and a round: does its work and says what each item of it took."""

    name: str
    round: Callable[[], Spent]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Every round, and the highest number of bytes: null where the device does not count."""

    name: str
    rounds: list[Spent]
    peak: int | None

    @property
    def median(self) -> Spent:
        """Of each clock on its own."""
        return Spent(
            wall=statistics.median(spent.wall for spent in self.rounds),
            processor=statistics.median(spent.processor for spent in self.rounds),
        )


def side_by_side(ways: Sequence[Way], *, rounds: int, device: torch.device) -> list[Measured]:
    """Every way once, unmeasured; then all in turn, `rounds` times."""
    for way in ways:
        way.round()
    spent: dict[str, list[Spent]] = {way.name: [] for way in ways}
    peaks: dict[str, int | None] = {}
    for _ in range(rounds):
        for way in ways:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            spent[way.name].append(way.round())
            peaks[way.name] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return [Measured(name=name, rounds=found, peak=peaks[name]) for name, found in spent.items()]


def now(device: torch.device) -> Spent:
    """Both clocks, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Spent(wall=time.perf_counter(), processor=time.process_time())


def as_rows(measured: Sequence[Measured], item: str) -> list[dict[str, str]]:
    """The table; the first way is what the others are compared with."""
    plain = measured[0].median
    rows = []
    for found in measured:
        walls = [spent.wall for spent in found.rounds]
        rows.append(
            {
                "way": found.name,
                f"s per {item}": f"{found.median.wall:.4g}",
                "lowest to highest": f"{min(walls):.4g} to {max(walls):.4g}",
                "times as fast": f"{plain.wall / found.median.wall:.2f}",
                f"processor s per {item}": f"{found.median.processor:.4g}",
                "times less": f"{plain.processor / found.median.processor:.2f}",
                "GiB at most": "not counted" if found.peak is None else f"{found.peak / GIB:.2f}",
            }
        )
    return rows
