"""How workers on any node learn that the sweep is to stop, and how Tune starts no more of them."""

import time
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from harness.interrupt import Stop

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
    """An actor that does nothing; that it is there says it. Its name is known to all nodes at once."""


class Stopping(tune.Callback, tune.Stopper):
    """The driver's part: puts the sign up, and ends Tune's run when those at work then have ended."""

    def __init__(self, stop: Stop, sign: str) -> None:
        self._stop, self._sign = stop, sign
        self._up: Any = None  # the actor lives as long as somebody holds it
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
