"""The Ray that a sweep is carried out on: how it is reached, and what it has room for."""

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence

from harness.errors import HarnessError
from harness.execution.spec import ComputeSpec
from harness.pipeline import Task

# Read by Ray when it is imported, so they must stand before the import.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # one more copy of every result
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must not end as a finished sweep
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # needs a network
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # gpus_per_trial: 0 means none, not all
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own progress table

import ray


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """A Ray to work with: the one connected already, the one at the address, or a fresh local one.

    Yields whether it is a fresh one of this machine alone.
    """
    if ray.is_initialized():
        yield False
        return
    # CRITICAL: a failed trial is an outcome with its reason; Tune would print its traceback over the display.
    try:
        ray.init(
            # Without an address Ray would join whatever cluster was last started on this machine.
            address=address or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except ConnectionError as error:
        raise HarnessError(f"no Ray cluster at {address} (--address or RAY_ADDRESS): {error}") from None
    try:
        yield address is None
    finally:
        ray.shutdown()


def takes_several_processes(tasks: Sequence[Task], compute: ComputeSpec) -> bool:
    """True where one of the tasks is trained by several processes together."""
    return compute.training_workers > 1 and any(task.runs for task in tasks)


def at_once(tasks: Sequence[Task], compute: ComputeSpec) -> int | None:
    """How many tasks run side by side. Tasks that hold nothing are as many as their processes fit."""
    if not takes_several_processes(tasks, compute):
        return compute.max_concurrent
    has, asked = _resources(), _of_one_process(compute)
    fitting = min(int(has.get(name, 0) // amount) for name, amount in asked.items() if amount)
    together = max(1, fitting // compute.training_workers)  # a cluster that grows may have room for it later
    return min(together, compute.max_concurrent or together)


def _resources() -> Counter[str]:
    """What all nodes have. Not `ray.cluster_resources()`, which knows nothing in its first moments."""
    found: Counter[str] = Counter()
    for node in ray.nodes():
        found.update(node["Resources"] if node["Alive"] else {})
    return found


def _of_one_process(compute: ComputeSpec) -> dict[str, float]:
    return {"CPU": compute.cpus_per_trial, "GPU": compute.gpus_per_trial / compute.training_workers}


def check_it_fits(compute: ComputeSpec) -> None:
    """Raise HarnessError where this machine will never have what a trial asks for; Tune would wait for it."""
    has, one = _resources(), _of_one_process(compute)
    if any(amount * compute.training_workers > has.get(name, 0) for name, amount in one.items()):
        raise HarnessError(
            f"compute: {compute.training_workers} processes of {one['CPU']:g} CPU and {one['GPU']:g} GPU do "
            f"not fit into this machine ({has.get('CPU', 0):g} CPU, {has.get('GPU', 0):g} GPU); lower "
            "cpus_per_trial, gpus_per_trial or workers_per_trial, or name a cluster by --address"
        )
