"""How a worker learns which of its runs are stopped: results travel to Tune, and nothing comes back.

The driver writes its scheduler's answers up in an actor of its own machine, whose name all nodes know. (The
workspace would do too, were it not for network file systems, where what one node has written another may
not see for seconds.)
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.decisions import Look

At = tuple[str, int]  # a look's run and step


class _Board:
    """The actor. Started again, it knows nothing: then who asks fails, is tried again, and tells again."""

    def __init__(self) -> None:
        self._stopped: dict[At, bool] = {}

    def write(self, answers: Mapping[At, bool]) -> None:
        self._stopped.update(answers)

    def read(self, asked: Sequence[At]) -> list[bool]:
        return [self._stopped[at] for at in asked]


class Answers:
    """The driver's end: the board is there for the length of its block."""

    def __init__(self) -> None:
        self.name = f"answers {uuid.uuid4().hex}"
        self._board: Any = None

    def __enter__(self) -> "Answers":
        """Start the board, on this machine, which cannot be lost without the driver."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        self._board = ray.remote(_Board).options(name=self.name, **options).remote()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Take it down."""
        ray.kill(self._board)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its scheduler, which nobody opens again."""
        return {}

    def __call__(self, answers: Mapping[At, bool]) -> None:
        """Write them up; on return they can be read."""
        ray.get(self._board.write.remote(dict(answers)))


def stopped(name: str, looks: Sequence[Look]) -> Collection[str]:
    """A worker's end: the ids of the runs that are stopped at these looks, which were told before."""
    board = ray.get_actor(name)
    answers = ray.get(board.read.remote([(look.run_id, look.step) for look in looks]))
    return {look.run_id for look, is_stopped in zip(looks, answers, strict=True) if is_stopped}
