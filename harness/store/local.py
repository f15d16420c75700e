"""A backend in a folder: on this machine's disk, or on a file system that several machines mount (NFS)."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import WorkspaceError
from harness.store.artifact import Artifact
from harness.store.backend import Waiting


class LocalStorage:
    """The files are where they are; the operating system lets go of what a dead process held."""

    def __init__(self, folder: Path) -> None:
        """Nothing is made."""
        self.root = folder.expanduser().resolve()
        self.address = str(self.root)

    def exists(self) -> bool:
        """False where there is no such folder."""
        return self.root.is_dir()

    @contextmanager
    def mark(self) -> Iterator[str]:
        """An empty file, as long as the block runs. Raises WorkspaceError where it cannot be written."""
        mark = f".mark-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / mark).write_bytes(b"")
        except OSError as error:
            raise WorkspaceError(f"--workspace {self.root} cannot be written: {error.strerror}") from None
        try:
            yield mark
        finally:
            (self.root / mark).unlink(missing_ok=True)

    def sees(self, mark: str) -> bool:
        """True where the file is there."""
        return (self.root / mark).exists()

    def artifact(self, name: str) -> Artifact:
        """The stage in this folder, finished or not."""
        return Artifact(self.root / name)

    def folders(self, name: str) -> list[str]:
        """Names of the folders in this one, sorted."""
        return sorted(path.name for path in (self.root / name).glob("*") if path.is_dir())

    def survey(self) -> AbstractContextManager[None]:
        """Looking is cheap: each question is answered by a look of its own."""
        return nullcontext()

    def look_again(self) -> None:
        """Each look is a new one."""

    def fetch(self, artifacts: Iterable[Artifact], concerned: Callable[[str], bool]) -> None:
        """They are here."""

    def fetch_files(self, folder: str) -> Path:
        """They are here."""
        return self.root / folder

    def upload(self, folder: str, here: Path, files: Sequence[str], *, alone: bool = False) -> None:
        """They are where they belong."""

    @contextmanager
    def hold(self, lock: str, waiting: Waiting) -> Iterator[None]:
        """Be the only one who holds it; another's end is waited for within `waiting`."""
        with waiting():
            held = self._lock(lock).acquire()
        with held:
            yield

    @contextmanager
    def hold_if_free(self, lock: str, *, at_once: bool = False) -> Iterator[bool]:
        """Hold it, and say so; or say False, at once, while another does."""
        try:
            held = self._lock(lock).acquire(timeout=0)
        except Timeout:
            yield False
            return
        with held:
            yield True

    def held(self, lock: str) -> bool:
        """True while it is locked. Creates nothing."""
        if not (self.root / lock).exists():
            return False
        with self.hold_if_free(lock) as free:
            return not free

    def clear_locks(self, folder: str) -> None:
        """Nothing: removing a lock file while a process waits for it would make two locks."""

    def _lock(self, lock: str) -> FileLock:
        path = self.root / lock
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)
