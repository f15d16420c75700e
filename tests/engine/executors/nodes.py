"""A cluster of Ray nodes on this machine, each with a raylet and workers of its own, and what ends them."""

import itertools
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.limits import HANGS

RAY = Path(sys.executable).parent / "ray"
STORE = "--object-store-memory=100000000"
NOTICED = (  # a node that is gone is noticed within 5 seconds instead of 25
    '{"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, '
    '"health_check_timeout_ms": 1000, "health_check_failure_threshold": 4}'
)
STARTED = "Ray runtime started"


class Node:
    """A node: `ray start` as a process, and all that it starts."""

    def __init__(self, *arguments: str, log: Path, unseen: Path | None = None, **environment: str) -> None:
        """Wait until it has started. The folder `unseen` is one of its own, as on another machine."""
        command = [str(RAY), "start", "--block", "--disable-usage-stats", STORE, *arguments]
        if unseen is not None:
            mounted = f"mount -t tmpfs tmpfs {shlex.quote(str(unseen))} && exec {shlex.join(command)}"
            command = ["unshare", "--mount", "sh", "-c", mounted]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, start_new_session=True, env={**os.environ, **environment}
            )
        deadline = time.monotonic() + HANGS
        while STARTED not in (said := log.read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Itself and all its children."""
        with suppress(psutil.NoSuchProcess):
            node = psutil.Process(self.process.pid)
            return [node, *node.children(recursive=True)]
        return []

    def workers(self) -> list[psutil.Process]:
        """Those of its processes that perform a task."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if "ImplicitFunc" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def lose(self) -> None:
        """As when a machine's power fails: everything on it ends at once."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=30)


class Nodes:
    """The head, which performs no tasks, and nodes of one CPU each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Node] = []
        self.numbers = itertools.count()
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.head = Node(
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            "--num-cpus=0",
            "--include-dashboard=false",
            f"--system-config={NOTICED}",
            log=folder / "head.log",
        )

    def join(self, *arguments: str, unseen: Path | None = None, **environment: str) -> Node:
        """One more. The folder `unseen` is one of its own, as on another machine."""
        number = next(self.numbers)
        address = ("--node-ip-address=127.0.0.1", f"--address={self.address}", "--num-cpus=1")
        agent = f"--dashboard-agent-listen-port={free_port()}"
        log = self.folder / f"{number}.log"
        node = Node(*address, agent, *arguments, log=log, unseen=unseen, **environment)
        self.started.append(node)
        return node

    def kill_workers(self) -> list[int]:
        """Kill -9 every process that performs a task; their ids."""
        killed = []
        for process in (process for node in self.started for process in node.workers()):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)
        return killed

    def close(self) -> None:
        """End all of it."""
        for node in [*self.started, self.head]:
            node.lose()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def cluster(folder: Path) -> Iterator[Nodes]:
    """A head without workers, which sweeps find by RAY_ADDRESS. Logs go to the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else a node needs the head's token in its home folder
        nodes = Nodes(folder)
        patch.setenv("RAY_ADDRESS", nodes.address)
        try:
            yield nodes
        finally:
            nodes.close()


@contextmanager
def once(when: Callable[[], object], then: Callable[[], object]) -> Iterator[list[object]]:
    """While the block runs, do it as soon as the condition holds; what it gave is in the list."""
    done: list[object] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not done:
            if when() and (result := then()):
                done.append(result)
            time.sleep(0.01)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield done
    finally:
        over.set()
        watching.join()
