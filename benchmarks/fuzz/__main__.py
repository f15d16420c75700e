"""Damaged and hostile inputs by the thousand, from a fixed seed.

python -m benchmarks.fuzz --seed 0
python -m benchmarks.fuzz --seed 0 --kind sweeps
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.fuzz.cases import Tally, run
from benchmarks.fuzz.kinds import KINDS
from benchmarks.machine import markdown


def main() -> None:
    """Print a table of the cases; exit with 1 where one went wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="default: all")
    asked = parser.parse_args()
    tallies = {name: _of_kind(name, asked.seed) for name in asked.kind or KINDS}
    print("\n".join(markdown([_row(name, tally) for name, tally in tallies.items()])))
    sys.exit(any(tally.faults for tally in tallies.values()))


def _of_kind(name: str, seed: int) -> Tally:
    make, count = KINDS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        tally = run(make(Path(folder), seed=seed, count=count), path=folder)
    for fault in tally.faults:
        print(f"{name} {fault}", file=sys.stderr)
    return tally


def _row(name: str, tally: Tally) -> dict[str, str]:
    return {
        "inputs": name,
        "cases": f"{tally.cases:,}",
        "refused": f"{tally.refused:,}",
        "taken": f"{tally.taken:,}",
        "went wrong": str(len(tally.faults)),
        "slowest, s": f"{tally.slowest:.1f}",
    }


if __name__ == "__main__":
    main()
