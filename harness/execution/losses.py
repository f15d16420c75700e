"""What became of lost workers and nodes. Tune alone knows; a node that is lost is no fault of a trial's."""

import re
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.experiment import Trial

from harness.bench import Report

NODE_LOSSES = 10  # nodes that one trial may lose before it counts as failed
DIED = re.compile(r"its node has died\. Node Id: (\w+)")  # Ray's words; its error has no field for it


class Losses(tune.Callback):
    """Counts them, and gives a trial the try back that a lost node took from it."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._nodes: set[str] = set()
        self._by_trial: dict[str, int] = {}
        self.left: set[int] = set()  # tasks that a lost node ended when no try was left

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, and a live display cannot be."""
        return {}

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune will try it again."""
        if self._without_fault(trial):
            lost = self._by_trial[trial.trial_id] = self._by_trial.get(trial.trial_id, 0) + 1
            if lost <= NODE_LOSSES:
                trial.max_failures += 1
        self._report("tried again", 1)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune will not."""
        if self._without_fault(trial):
            self.left.add(trial.config["task"])

    def _without_fault(self, trial: Trial) -> bool:
        """Whether it ended with its node; counts that node once, or the worker where Ray names no node.

        A worker that dies alone is known to be dead at once. One that is merely out of reach is on a node
        that is gone, which Ray notices half a minute later, or behind a network that failed.
        """
        error = _last_error(trial)
        if not isinstance(error, ray.exceptions.RayActorError):
            return False
        died = DIED.search(str(error))
        if died is None:
            self._report("worker lost", 1)
            return isinstance(error, ray.exceptions.ActorUnavailableError)
        if died[1] not in self._nodes:
            self._nodes.add(died[1])
            self._report("node lost", 1)
        return True


def _last_error(trial: Trial) -> Any:
    """What Tune wrote down in this process's own folder; it is copied to its books only later."""
    file = trial.pickled_error_file
    return cloudpickle.loads(Path(file).read_bytes()) if file and Path(file).is_file() else None
