"""Tune callbacks: the stop of a sweep on all nodes, and the incidents of workers and nodes."""

import re
import time
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.experiment import Trial

from harness.engine.stages.context import Report, Stop

NODE_LOSSES = 10  # nodes that one trial may lose before it counts as failed
DIED = re.compile(r"its node has died\. Node Id: (\w+)")  # Ray's words; its error has no field for it


class Losses(tune.Callback):
    """Counts lost workers and nodes, and gives a trial the try back that a lost node took from it."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._nodes: set[str] = set()
        self._by_trial: dict[str, int] = {}
        self.without_fault: set[str] = set()  # trials that a lost node ended when no try was left

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, and a live display cannot be."""
        return {}

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune will try it again."""
        if self._is_without_fault(trial):
            lost = self._by_trial[trial.trial_id] = self._by_trial.get(trial.trial_id, 0) + 1
            if lost <= NODE_LOSSES:
                trial.max_failures += 1
        self._report("tried again", 1)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune will not."""
        if self._is_without_fault(trial):
            self.without_fault.add(trial.trial_id)

    def _is_without_fault(self, trial: Trial) -> bool:
        """Whether it ended with its node; counts that node once, or the worker where Ray names no node.

        A worker that dies alone is known to be dead at once. One that is merely out of reach is on a node
        that is gone, which Ray notices half a minute later, or behind a network that failed.
        """
        error = last_error(trial)
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


def last_error(trial: Trial) -> Any:
    """What Tune wrote down in this process's own folder; it is copied to its books only later."""
    file = trial.pickled_error_file
    return cloudpickle.loads(Path(file).read_bytes()) if file and Path(file).is_file() else None


LOOK_EVERY_SECONDS = 2.0


class Asked:
    """A worker's `Stop`: true once the driver has put up the sign of this name, looked for now and then."""

    def __init__(self, sign: str) -> None:
        self.sign = sign
        self._found = False
        self._looked = float("-inf")

    def __call__(self) -> bool:
        """Look, unless that was done a moment ago."""
        if not self._found and time.monotonic() - self._looked > LOOK_EVERY_SECONDS:
            self._looked = time.monotonic()
            self._found = _is_up(self.sign)
        return self._found


def _is_up(sign: str) -> bool:
    try:
        ray.get_actor(sign)
    except ValueError:  # Ray's word for: no such actor
        return False
    return True


class _Sign:
    """An actor without methods: its existence is the signal, and its name is visible on all nodes."""


class Stopping(tune.Callback, tune.Stopper):
    """The driver's part: puts the sign up, and ends Tune's run when those at work then have ended."""

    def __init__(self, stop: Stop, sign: str) -> None:
        self._stop, self._sign = stop, sign
        self._up: Any = None  # the actor lives as long as a handle is held
        self._at_work: list[Trial] = []
        self._over = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, and neither the driver's flag nor its actor can travel."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tune asks whether a trial is to be stopped by its result: none is."""
        return False

    def stop_all(self) -> bool:
        """Tune asks whether it is to end."""
        return self._over

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune calls this some times in a second."""
        if not self._stop():
            return
        if self._up is None:
            self._up = ray.remote(num_cpus=0)(_Sign).options(name=self._sign).remote()
            self._at_work = [trial for trial in trials if trial.status == Trial.RUNNING]
        self._over = not any(trial.status == Trial.RUNNING for trial in self._at_work)
