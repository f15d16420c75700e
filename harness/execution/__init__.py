"""How tasks are spread over workers: Ray Tune, or a plain loop in this process."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.pipeline import Executor

ExecutorName = Literal["ray", "local"]


def make_executor(name: ExecutorName) -> "Executor":
    """The executor of that name. Ray is imported only when it is asked for."""
    match name:
        case "local":
            from harness.execution.local import LocalExecutor

            return LocalExecutor()
        case "ray":
            from harness.execution.ray_tune import RayTuneExecutor

            return RayTuneExecutor()
