"""Two ways side by side: rounds in turn, so that both meet the same machine; medians over the rounds."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Way:
    """A name, and a round: does its work and says how many seconds each item of it took."""

    name: str
    round: Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Medians over the rounds. `peak` is in bytes, null where the device does not count."""

    name: str
    seconds: float
    lowest: float
    highest: float
    peak: int | None


def side_by_side(ways: Sequence[Way], *, rounds: int, device: torch.device) -> list[Measured]:
    """Every way once, unmeasured; then all in turn, `rounds` times."""
    for way in ways:
        way.round()
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    peaks: dict[str, int | None] = {}
    for _ in range(rounds):
        for way in ways:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds[way.name].append(way.round())
            peaks[way.name] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return [
        Measured(
            name=name,
            seconds=statistics.median(found),
            lowest=min(found),
            highest=max(found),
            peak=peaks[name],
        )
        for name, found in seconds.items()
    ]


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def as_rows(measured: Sequence[Measured], item: str) -> list[dict[str, str]]:
    """The table; the first way is what the others are compared with."""
    return [
        {
            "way": found.name,
            f"seconds per {item}": f"{found.seconds:.4g}",
            "lowest to highest": f"{found.lowest:.4g} to {found.highest:.4g}",
            "times as fast": f"{measured[0].seconds / found.seconds:.2f}",
            "GiB at most": "not counted" if found.peak is None else f"{found.peak / GIB:.2f}",
        }
        for found in measured
    ]
