"""A sweep driven on a cluster that is reached through Ray's client port alone (`ray://HOST:PORT`).

Tune's callbacks do not come back through that port, and the workspace need not be seen from here. So the
driver goes to the cluster, as an actor that holds nothing of it, and what it says comes back.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray

from harness.bench import Event, Kind
from harness.errors import HarnessError
from harness.interrupt import Stop
from harness.inventory import Count
from harness.pipeline import SweepRun
from harness.screen import Screen

LISTEN_EVERY_SECONDS = 0.5
TRIES = 3  # to be let in

Work = Callable[["Far", Stop], SweepRun]


class Far:
    """The screen as the driver has it: what is said to it waits to be fetched."""

    def __init__(self) -> None:
        """Nothing said yet."""
        self._said: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()

    def begin(self, stage: str, asked: Mapping[Kind, Count]) -> None:
        """A stage starts."""
        self._said.put(("begin", (stage, asked)))

    def report(self, kind: Kind | Event, count: int) -> None:
        """So much more has been made."""
        self._said.put(("report", (kind, count)))

    def warn(self, text: str) -> None:
        """One line."""
        self._said.put(("warn", (text,)))

    def fetch(self) -> list[tuple[str, tuple[Any, ...]]]:
        """What was said since the last call."""
        return [self._said.get() for _ in range(self._said.qsize())]


class _Driver:
    """The actor. Its methods run side by side, each in a thread."""

    def __init__(self) -> None:
        self._screen = Far()
        self._stop = threading.Event()

    def drive(self, work: Work) -> SweepRun | HarnessError:
        """Carry the sweep out. An error is given back, for Ray would wrap it in a traceback."""
        try:
            return work(self._screen, self._stop.is_set)
        except HarnessError as error:
            return error

    def said(self) -> list[tuple[str, tuple[Any, ...]]]:
        return self._screen.fetch()

    def stop(self) -> None:
        self._stop.set()


def drive_at(address: str, work: Work, screen: Screen, stop: Stop) -> SweepRun:
    """Do the work in the cluster at `ray://HOST:PORT`, and show here what it says.

    Ends with this process: a driver that nobody listens to is ended by Ray half a minute later. Raises what
    the work raises, and HarnessError where the cluster is not there any more.
    """
    with _client(address):
        driver = ray.remote(num_cpus=0, max_concurrency=3)(_Driver).remote()
        ended = driver.drive.remote(work)
        told = False
        while not ray.wait([ended], timeout=LISTEN_EVERY_SECONDS)[0]:
            _show(ray.get(driver.said.remote()), screen)
            if stop() and not told:
                ray.get(driver.stop.remote())
                told = True
        _show(ray.get(driver.said.remote()), screen)
        result = ray.get(ended)
        if isinstance(result, HarnessError):
            raise result
        return result


def _show(said: list[tuple[str, tuple[Any, ...]]], screen: Screen) -> None:
    for name, values in said:
        getattr(screen, name)(*values)


def _connect(address: str) -> None:
    """The process that Ray's head forks for a client may die at once; then another is asked for."""
    for tries_left in reversed(range(TRIES)):
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
            return
        except (ConnectionError, RuntimeError) as error:
            ray.shutdown()  # else this process counts as a client's, and can start no Ray of its own
            if not isinstance(error, ConnectionAbortedError) or not tries_left:
                raise


@contextlib.contextmanager
def _client(address: str) -> Iterator[None]:
    try:
        _connect(address)
    except (ConnectionError, RuntimeError) as error:
        why = str(error).strip().splitlines()[-1]  # a traceback of the other side may come before
        raise HarnessError(f"no Ray cluster at {address} (--address or RAY_ADDRESS): {why}") from None
    try:
        yield
    except (ConnectionError, ray.exceptions.RayActorError) as error:
        raise HarnessError(
            f"the cluster at {address} is not there any more ({str(error).splitlines()[0]}); "
            "what is finished is kept, and the same command goes on"
        ) from None
    finally:
        ray.shutdown()
