"""What every stage shares: schedules, averages, checkpoints and a loss log that survive an interruption."""

from __future__ import annotations

import csv
import os
import time
from functools import cache
from pathlib import Path

import torch
from torch import nn

SAVE_EVERY = 240.0  # seconds between two checkpoints


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> torch.autocast:
    """bfloat16 arithmetic with float32 weights where it is faster than float32, else float32."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=_bfloat16_is_faster())


@cache
def _bfloat16_is_faster() -> bool:
    """Measured: on CPUs with AMX it is several times as fast as float32, on others 80 times as slow."""
    if device().type == "cuda":
        return True
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=kind)
        matrix @ matrix  # the first product sets up the library
        start = time.perf_counter()
        for _ in range(3):
            matrix @ matrix
        seconds[kind] = time.perf_counter() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


def ramp(step: int, total: int, warm: int, decay: float = 0.3, fresh: int = 0) -> float:
    """Learning-rate factor: linear warm-up, constant, linear to zero over the last `decay` of the run.

    `fresh` is the step at which the optimizer began without memory.
    """
    return min((step - fresh + 1) / warm, 1.0, (total - step) / max(1.0, decay * total))


class Threads:
    """Two threads where the second core is free, else one.

    Two threads wait for each other after each operator. Where another process holds a core, the waiting
    makes a step ten times as long as one thread alone takes.
    """

    def __init__(self, most: int = 2, every: float = 10.0) -> None:
        self.most, self.every = min(most, os.cpu_count() or 1), every
        self.last = (time.monotonic(), self._busy(), time.process_time())
        torch.set_num_threads(1)

    @staticmethod
    def _busy() -> float:
        """Seconds of all cores' work since the start of the machine; 0 where the system does not tell."""
        path = Path("/proc/stat")
        if not path.exists():
            return 0.0
        user, nice, system = (int(v) for v in path.read_text().split("\n", 1)[0].split()[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")

    def adapt(self) -> None:
        """Call once a step: looks, now and then, at what the other processes took."""
        now = time.monotonic()
        if self.most == 1 or now - self.last[0] < self.every:
            return
        busy, own = self._busy(), time.process_time()
        others = (busy - self.last[1] - (own - self.last[2])) / (now - self.last[0])
        cores = os.cpu_count() or 1
        torch.set_num_threads(max(1, min(self.most, round(cores - others - 0.3))))
        self.last = (now, busy, own)


class Average:
    """Exponential moving average of a module's floating-point state, slow only after a while."""

    def __init__(self, module: nn.Module, slowest: float = 0.999) -> None:
        self.slowest, self.updates = slowest, 0
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    def update(self, module: nn.Module) -> None:
        """Move towards the module's present weights."""
        self.updates += 1
        keep = min(self.slowest, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            current = module.state_dict()
            floats = [k for k, v in self.state.items() if v.is_floating_point()]
            torch._foreach_lerp_([self.state[k] for k in floats], [current[k] for k in floats], 1 - keep)


class Log:
    """A CSV of losses, appended to."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.monotonic()

    def write(self, step: int, **values: float) -> None:
        """One row, also printed."""
        row = {"step": step, "seconds": round(time.monotonic() - self.start, 1)}
        row |= {k: round(float(v), 5) for k, v in values.items()}
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(self.path.stem, row, flush=True)


def save(path: Path, **parts: object) -> None:
    """Write a checkpoint whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(parts, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Clock:
    """Says when the next checkpoint is due."""

    def __init__(self, every: float = SAVE_EVERY) -> None:
        self.every, self.last = every, time.monotonic()

    def due(self) -> bool:
        """Whether `every` seconds have passed since it last said so."""
        if time.monotonic() - self.last < self.every:
            return False
        self.last = time.monotonic()
        return True


def take_up(kept: dict | None, learner: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Put a checkpoint's weights and memory in place; the step to go on from, and the optimizer's first.

    A checkpoint made from shipped weights has no memory of the optimizer.
    """
    if kept is None:
        return 0, 0
    learner.load_state_dict(kept["weights"])
    if kept["optimizer"] is None:
        return kept["step"], kept["step"]
    optimizer.load_state_dict(kept["optimizer"])
    return kept["step"], 0


def finished(path: Path) -> dict:
    """Read the checkpoint of a stage that has to be there. Raises FileNotFoundError where it is not."""
    return torch.load(path, map_location=device(), weights_only=True)


def restore(path: Path) -> dict | None:
    """Read a checkpoint if there is one."""
    return finished(path) if path.exists() else None
