"""A finished sweep of thousands of trials run again: how long `harness run` takes to find nothing to do.

`python -m benchmarks.resume`. The store is made first, with nothing trained and flat images (`pretend.py`);
then the whole command is timed, in a process of its own. `--workspace` keeps the store, and may be one that
an earlier call has made.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.machine import print_table
from benchmarks.many import QUICKSTART, TRIALS_OF_SEED, overrides
from benchmarks.pretend import carry_out
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import expand
from harness.store.workspace import Workspace

FINISHED = "Nothing to train, generate or score"


def make(workspace: str, changes: list[str]) -> dict[str, int]:
    """Carry the sweep to its end; says what it holds."""
    plan = expand(load_sweep(QUICKSTART, changes))
    finished = carry_out(plan, Workspace(workspace))
    assert not any(outcome.failed for outcome in finished.outcomes), finished.outcomes
    assert (finished.results.trials["status"] == "completed").all()
    return {
        "trials": len(plan.trials),
        "training runs": len(plan.runs),
        "images": len(finished.results.images),
        "stages": sum(1 for _ in Workspace(workspace).places()),
    }


def run_again(workspace: str, changes: list[str]) -> float:
    """Seconds of the whole command. It must find nothing to make."""
    sets = [word for change in changes for word in ("--set", change)]
    command = ["run", str(QUICKSTART), "--workspace", workspace, *sets]
    started = time.monotonic()
    finished = subprocess.run(
        [sys.executable, "-c", "from harness.cli.main import main; main()", *command],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - started
    assert FINISHED in finished.stdout, finished.stdout
    return seconds


@contextmanager
def _in_bucket(folder: str) -> Iterator[str]:
    """The same workspace in a bucket of the server that the tests use, whose key the environment then has."""
    from tests.store import server

    with tempfile.TemporaryDirectory() as served, server.s3_server(Path(served)) as endpoint:
        os.environ |= server.environment(endpoint)
        server.client(endpoint).put(folder, f"{server.BUCKET}/resumed", recursive=True)
        yield f"s3://{server.BUCKET}/resumed"


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000, help="a multiple of 8")
    parser.add_argument("--prompts", type=int, default=6, help="drawn by every arm of every trial, up to 12")
    parser.add_argument("--rounds", type=int, default=5)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workspace", help="a folder or s3://…; default: a temporary one")
    where.add_argument(
        "--s3", action="store_true", help="made in a folder, copied to a bucket of a server on this machine"
    )
    given = parser.parse_args()
    changes = overrides(name="resumed", seeds=given.trials // TRIALS_OF_SEED, prompts=given.prompts)
    with ExitStack() as stack:
        workspace = given.workspace or stack.enter_context(tempfile.TemporaryDirectory())
        holds = make(workspace, changes)
        if given.s3:
            workspace = stack.enter_context(_in_bucket(workspace))
        first, *again = [run_again(workspace, changes) for _ in range(given.rounds + 1)]
    print(f"load {os.getloadavg()[0]:.1f}")
    row = {name: f"{count:,}" for name, count in holds.items()}
    row |= {
        "s": f"{statistics.median(again):.2f}",
        "lowest to highest": f"{min(again):.2f} to {max(again):.2f}",
    }
    print_table([row | {"the first time": f"{first:.2f}"}], device=None)


if __name__ == "__main__":
    main()
