"""The protocol of a backend: what a workspace needs of its storage."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from harness.store.artifact import Artifact


class Storage(Protocol):
    """A tree of files. Names are relative to it, with forward slashes.

    Whatever reads and writes files does so below `root`, on this machine. What a storage elsewhere has is
    brought there when it is asked for (`Artifact.fetch`, `fetch_files`), and what is made is brought to it
    (`Artifact.build`, `upload`). Where the storage is the folder `root` itself, nothing need be brought.
    """

    @property
    def address(self) -> str:
        """As its user names it; opens it again, on any machine."""
        ...

    @property
    def root(self) -> Path:
        """The folder on this machine."""
        ...

    def exists(self) -> bool:
        """False where there is nothing at all."""
        ...

    def marker(self) -> AbstractContextManager[str]:
        """While the block runs, other processes of the same storage `see` this marker.

        Raises WorkspaceError where nothing can be written.
        """
        ...

    def sees(self, marker: str) -> bool:
        """True if the marker is there."""
        ...

    def artifact(self, name: str) -> Artifact:
        """The artifact in this folder, finished or not."""
        ...

    def folders(self, name: str) -> list[str]:
        """Names of the folders in this one, sorted."""
        ...

    def listing(self) -> AbstractContextManager[None]:
        """While the block runs, what is finished may be answered from one cached listing of the store.

        It is taken now, or serves again if it is fresh and was not invalidated.
        """
        ...

    def invalidate(self) -> None:
        """Other processes have made artifacts: the next listing is taken anew."""
        ...

    def fetch(self, artifacts: Iterable[Artifact], concerned: Callable[[str], bool]) -> None:
        """Bring files of many finished artifacts at once; a missing one is an error only when it is read."""
        ...

    def fetch_files(self, folder: str) -> Path:
        """A folder that is no artifact, with the files right in it: where it is on this machine."""
        ...

    def upload(self, folder: str, here: Path, files: Sequence[str], *, alone: bool = False) -> None:
        """Bring files of the folder `here`, on this machine, into a folder of the store that is no artifact.

        The last of several says that all are there: what was there of it goes first, and it comes last.
        `alone`: whatever else is there goes.
        """
        ...

    def lock(self, lock: str) -> AbstractContextManager[None]:
        """Hold a lock; waits while another process holds it. A dead process's lock is released."""
        ...

    def lock_if_free(self, lock: str) -> AbstractContextManager[bool]:
        """Yields True with the lock held, False while another process holds it.

        In a bucket it takes some seconds to see whether that process lives.
        """
        ...

    def locked(self, lock: str) -> bool:
        """True while a process holds it. Creates nothing."""
        ...
