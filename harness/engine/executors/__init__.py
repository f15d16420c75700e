"""How tasks are spread over workers: Ray Tune, or a plain loop in this process."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.engine.queue import Executor


RAY_CLIENT = "ray://"
ExecutorName = Literal["ray", "local"]

# Read by Ray when it is imported. Here, because this runs before any file of this room.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # one more copy of every result
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must not end as a finished sweep
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # needs a network
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # gpus_per_trial: 0 means none, not all
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own progress table
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")  # its books; ours are the store
# Tasks handed to Tune before a worker is free for them; enough for a cluster that grows to see its need.
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "64")
# A screenful for each lost worker and node, whatever log_to_driver says; the report counts them.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")


def make_executor(name: ExecutorName, *, address: str | None = None) -> AbstractContextManager["Executor"]:
    """The executor of that name, for the time of a block. Ray is imported when there is something to do.

    `address` is of a Ray cluster: `auto` (the one started on this machine) or HOST:PORT; null: what
    RAY_ADDRESS says, else a Ray of this process alone. Raises ConfigError for `ray://HOST:PORT`.
    """
    match name:
        case "local":
            from harness.engine.executors.local import LocalExecutor

            return nullcontext(LocalExecutor())
        case "ray":
            address = address or os.environ.get("RAY_ADDRESS")
            if address is not None and address.startswith(RAY_CLIENT):
                raise ConfigError(
                    f"a sweep cannot be driven through Ray's client ({address}); from outside a cluster use "
                    "`ray job submit --address http://HOST:8265 -- harness run …`"
                )
            from harness.engine.executors.ray_when_needed import RayWhenNeeded

            return RayWhenNeeded(address)
