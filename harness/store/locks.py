"""Locks without an operating system's: leases, renewed by their holder and watched by others.

A lease is one object per generation, `LOCK/00000007`, acquired by a conditional write of the next generation
and renewed by a beat in it. One without a beat for `LEASE_SECONDS` of the watcher's own clock is taken over;
clocks of machines are never compared. Without conditional writes, or after a long halt of the holder, two may
hold one lock: work is then done twice, with equal results.
"""

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import WorkspaceError
from harness.store.objects import Bucket

LEASE_SECONDS = float(os.environ.get("HARNESS_LEASE_SECONDS", "60"))
BEATS = 6  # per lease
LOOK_EVERY_SECONDS = (0.3, 3.0)  # at first, and in a long wait


@dataclass(frozen=True)
class Lease:
    """One generation of a lock's lease. `content` is None for the generation before the first."""

    lock: str
    generation: int
    content: bytes | None

    @property
    def name(self) -> str:
        """Its object."""
        return f"{self.lock}/{self.generation:08d}"

    @property
    def says(self) -> dict[str, Any]:
        """Its content; nothing where it is no lease."""
        try:
            said = json.loads(self.content or b"{}")
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    @property
    def held(self) -> bool:
        """False if there is none, or it was released."""
        return self.content is not None and not self.says.get("free", False)


class Leases:
    """The leases of one bucket, as this process sees them."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    @contextmanager
    def lock(self, lock: str) -> Iterator[None]:
        """Hold a lock; waits until another process releases it, or is dead."""
        watch, pause = _Watch(), LOOK_EVERY_SECONDS[0]
        while (held := self._take(lock, watch)) is None:
            time.sleep(pause * random.uniform(0.7, 1.0))
            pause = min(1.3 * pause, LOOK_EVERY_SECONDS[1], LEASE_SECONDS / BEATS)
        with held:
            yield

    @contextmanager
    def lock_if_free(self, lock: str) -> Iterator[bool]:
        """Yields True with the lock held, False as soon as another process shows that it is alive."""
        watch = _Watch()
        while (held := self._take(lock, watch)) is None and not watch.alive:
            time.sleep(min(0.5, LEASE_SECONDS / BEATS / 2))
        if held is None:
            yield False
            return
        with held:
            yield True

    def locked(self, lock: str) -> bool:
        """True while a process holds it, or its holder died a short time ago."""
        return any(lease.held for lease in self._all(lock))

    def _all(self, lock: str) -> list[Lease]:
        """Every generation that is there, the newest last: one, but for moments."""
        names = [name for name in self.bucket.find(lock) if name.rpartition("/")[2].isdigit()]
        contents = sorted(self.bucket.read(names).items()) if names else []
        return [Lease(lock, int(name.rpartition("/")[2]), content) for name, content in contents]

    def _take(self, lock: str, watch: "_Watch") -> "_Held | None":
        """The next generation, if all that are there are free or dead, and no other process was as fast."""
        seen = self._all(lock)
        alive = [lease for lease in seen if lease.held and not watch.dead(lease)]
        if alive:
            return None
        newest = max((lease.generation for lease in seen), default=0)
        mine = Lease(lock, newest + 1, _content(beat=0))
        assert mine.content is not None
        if not self.bucket.create(mine.name, mine.content):
            return None
        others = set(self.bucket.find(lock)) - {mine.name}
        if others - {lease.name for lease in seen}:  # taken and released since the listing; or just now
            self.bucket.remove([mine.name])
            return None
        self.bucket.remove(sorted(others))
        return _Held(self.bucket, mine)


class _Watch:
    """Sees of a lease whether its beat goes on, by the clock of this process alone."""

    def __init__(self) -> None:
        self.alive = False
        self._seen: dict[int, tuple[bytes | None, float]] = {}  # by generation: its content, and since when

    def dead(self, lease: Lease) -> bool:
        """True where it stood still for its time; of a process on this machine, where that is gone."""
        content, since = self._seen.get(lease.generation, (None, 0.0))
        if content != lease.content:
            self.alive = self.alive or content is not None
            since = time.monotonic()
            self._seen[lease.generation] = lease.content, since
        if lease.says.get("machine") == _machine() is not None:
            runs = _runs(lease.says)
            self.alive = self.alive or runs
            return not runs
        seconds = lease.says.get("seconds", LEASE_SECONDS)  # the holder's: it decides how often it beats
        return time.monotonic() - since > seconds


class _Held:
    """A lease of this process. Within the block it beats; at its end it is free."""

    def __init__(self, bucket: Bucket, lease: Lease) -> None:
        self._bucket, self._lease = bucket, lease
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on_beating, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._write(free=True)

    def _go_on_beating(self) -> None:
        beat = 0
        while not self._over.wait(LEASE_SECONDS / BEATS):
            beat += 1
            self._write(beat=beat)

    def _write(self, **said: Any) -> None:
        """What cannot be written now is said by the next beat; at the end, by silence."""
        with suppress(WorkspaceError):
            self._bucket.write(self._lease.name, _content(**said))


def _content(**said: Any) -> bytes:
    whose = {"machine": _machine(), "process": os.getpid(), "started": _started(os.getpid())}
    known = {"host": socket.gethostname(), "seconds": LEASE_SECONDS, "nonce": uuid.uuid4().hex}
    return json.dumps({**whose, **known, **said}).encode()


def _machine() -> str | None:
    """This boot of this machine, and the space its process ids are of; None if that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(process: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        return None


def _runs(lease: dict[str, Any]) -> bool:
    return _started(lease["process"]) == lease["started"]
