"""A backend in a folder: on this machine's disk, or on a file system that several machines mount (NFS)."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import WorkspaceError
from harness.store.artifact import Artifact


class LocalStorage:
    """The files are where they are; the operating system releases the locks of a dead process."""

    def __init__(self, folder: Path, begun: str) -> None:
        """Nothing is made. `begun` is the folder below it in which artifacts are built."""
        self.root = folder.expanduser().resolve()
        self.address = str(self.root)
        self.begun = self.root / begun

    def exists(self) -> bool:
        """False where there is no such folder."""
        return self.root.is_dir()

    @contextmanager
    def marker(self) -> Iterator[str]:
        """An empty file, as long as the block runs. Raises WorkspaceError where it cannot be written."""
        marker = f".mark-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / marker).write_bytes(b"")
        except OSError as error:
            raise WorkspaceError(f"--workspace {self.root} cannot be written: {error.strerror}") from None
        try:
            yield marker
        finally:
            (self.root / marker).unlink(missing_ok=True)

    def sees(self, marker: str) -> bool:
        """True where the file is there."""
        return (self.root / marker).exists()

    def artifact(self, name: str) -> Artifact:
        """The artifact in this folder, finished or not."""
        return Artifact(self.root / name, self.begun)

    def folders(self, name: str) -> list[str]:
        """Names of the folders in this one, sorted."""
        return sorted(path.name for path in (self.root / name).glob("*") if path.is_dir())

    def listing(self) -> AbstractContextManager[None]:
        """Nothing is cached: asking a file system is cheap."""
        return nullcontext()

    def invalidate(self) -> None:
        """Nothing is cached."""

    def fetch(self, artifacts: Iterable[Artifact], concerned: Callable[[str], bool]) -> None:
        """They are here."""

    def fetch_files(self, folder: str) -> Path:
        """They are here."""
        return self.root / folder

    def upload(self, folder: str, here: Path, files: Sequence[str], *, alone: bool = False) -> None:
        """They are where they belong."""

    @contextmanager
    def lock(self, lock: str) -> Iterator[None]:
        """Hold a lock; waits while another process holds it."""
        with self._lock(lock).acquire():
            yield

    @contextmanager
    def lock_if_free(self, lock: str) -> Iterator[bool]:
        """Yields True with the lock held, False while another process holds it."""
        try:
            held = self._lock(lock).acquire(timeout=0)
        except Timeout:
            yield False
            return
        with held:
            yield True

    def locked(self, lock: str) -> bool:
        """True while a process holds it. Creates nothing."""
        if not (self.root / lock).exists():
            return False
        with self.lock_if_free(lock) as free:
            return not free

    def _lock(self, lock: str) -> FileLock:
        path = self.root / lock
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)
