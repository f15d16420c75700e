"""On which machine, by which command: what stands beside every number."""

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch


def machine(device: torch.device) -> str:
    """The device's name, its memory or its number of threads, and the versions that decide speed."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, diffusers {version('diffusers')}, peft {version('peft')}"


def print_table(rows: Sequence[dict[str, str]], *, device: torch.device | None) -> None:
    """A Markdown table under the command that made it and, where it depends on one, the machine."""
    module = Path(sys.argv[0]).stem
    print(f"`{' '.join(['python -m', f'benchmarks.{module}', *sys.argv[1:]])}`")
    if device is not None:
        print(f"on {machine(device)}")
    print()
    print("\n".join(markdown(rows)))


def markdown(rows: Sequence[dict[str, str]]) -> list[str]:
    """The lines of a table; all rows have the columns of the first."""
    columns = list(rows[0])
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
        for cells in (
            columns,
            ["-" * width for width in widths],
            *([row[c] for c in columns] for row in rows),
        )
    ]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
