"""The protocol of a backend: what a workspace needs of its storage."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from harness.store.artifact import Artifact

Waiting = Callable[[], AbstractContextManager[None]]


class Storage(Protocol):
    """A tree of files. Names are relative to it, with forward slashes.

    Whatever reads and writes files does so below `root`, on this machine. What a storage elsewhere has is
    brought there when it is asked for (`Stage.fetch`, `fetch_files`), and what is made is brought to it
    (`Stage.build`, `upload`). Where the storage is the folder `root` itself, nothing need be brought.
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

    def mark(self) -> AbstractContextManager[str]:
        """While the block runs, other processes of the same storage `see` this marker.

        Raises WorkspaceError where nothing can be written.
        """
        ...

    def sees(self, mark: str) -> bool:
        """True where the mark is there."""
        ...

    def artifact(self, name: str) -> Artifact:
        """The stage in this folder, finished or not."""
        ...

    def folders(self, name: str) -> list[str]:
        """Names of the folders in this one, sorted."""
        ...

    def survey(self) -> AbstractContextManager[None]:
        """While the block runs, what is finished may be answered from one look at all there is.

        The look is taken now, or serves again where it is fresh and not invalidated by `look_again`.
        """
        ...

    def look_again(self) -> None:
        """Others have made things: the next survey is to see them."""
        ...

    def fetch(self, artifacts: Iterable[Artifact], concerned: Callable[[str], bool]) -> None:
        """Bring files of many finished stages at once; those that cannot be had are found out when read."""
        ...

    def fetch_files(self, folder: str) -> Path:
        """A folder that is no stage, the files right in it as they are now: where it is on this machine."""
        ...

    def upload(self, folder: str, here: Path, files: Sequence[str], *, alone: bool = False) -> None:
        """Bring files of the folder `here`, on this machine, into a folder of the store that is no stage.

        The last of several says that all are there: what was there of it goes first, and it comes last.
        `alone`: whatever else is there goes.
        """
        ...

    def hold(self, lock: str, waiting: Waiting) -> AbstractContextManager[None]:
        """Be the only one who holds it; another's end is waited for within `waiting`."""
        ...

    def hold_if_free(self, lock: str, *, at_once: bool = False) -> AbstractContextManager[bool]:
        """Hold it, and say so; or say False while another does.

        It may take a while to tell whether that one lives. `at_once`: without knowing; `hold` finds out.
        """
        ...

    def held(self, lock: str) -> bool:
        """True while it is locked. Creates nothing."""
        ...

    def clear_locks(self, folder: str) -> None:
        """Remove released lock files below a folder, if that is safe."""
        ...
