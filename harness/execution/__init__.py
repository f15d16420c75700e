"""How tasks are spread over workers: Ray Tune, or a plain loop in this process."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.pipeline import Executor

ExecutorName = Literal["ray", "local"]


def make_executor(name: ExecutorName, *, address: str | None = None) -> "Executor":
    """The executor of that name. Ray is imported only when it is asked for.

    `address` is of a Ray cluster: `auto` (the one started on this machine) or HOST:PORT; null: what
    RAY_ADDRESS says, else a Ray of this process alone.
    """
    match name:
        case "local":
            from harness.execution.local import LocalExecutor

            return LocalExecutor()
        case "ray":
            from harness.execution.ray_tune import RayTuneExecutor

            return RayTuneExecutor(address)
