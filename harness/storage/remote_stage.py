"""A stage that lies in a bucket: its files are brought to this machine when they are asked for.

It is uploaded as it is finished: the files first, the manifest last, so that here as there a stage with a
manifest is whole. What is fetched is compared with the manifest's hashes before it has its name.
"""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import StageError
from harness.stage import MANIFEST, Stage, every, is_manifest, sha256

if TYPE_CHECKING:
    from harness.storage.remote import RemoteStorage

TOKEN = ".token"  # beside the files on this machine: of which manifest in the bucket they are


@dataclass(frozen=True)
class RemoteStage(Stage):
    """`path` is where its files come to be; `name` is what it is called in the bucket."""

    storage: "RemoteStorage"
    name: str

    @property
    def place(self) -> str:
        """Where it lies, for messages."""
        return f"{self.storage.address}/{self.name}"

    @property
    def done(self) -> bool:
        """True when the manifest is there."""
        return self.storage.token(self.name) is not None

    def fetch(self, concerned: Callable[[str], bool] = every) -> Path:
        """The folder, its files with names that are `concerned` on this machine, as they were written.

        Raises StageError where one of them is gone or damaged.
        """
        self.storage.fetch([self], concerned)
        for name in self.manifest()["files"]:
            if concerned(name) and not (self.path / name).is_file():
                raise StageError(f"{self.place}/{name} is missing or does not match its manifest")
        return self.path

    def contents(self) -> dict[str, int]:
        """Files of a folder, finished or not, by name, and their bytes; none where there is no folder."""
        return {name: facts.size for name, facts in self.storage.files(self.name).items()}

    def changed_at(self) -> datetime:
        """When the last of its files was written; now where none says it."""
        times = [facts.changed_at for facts in self.storage.files(self.name).values()]
        return max((time for time in times if time is not None), default=datetime.now(UTC))

    def stamp(self, *names: str) -> str:
        """Tokens of the manifest and of these files in the bucket; another text once one is another."""
        there = self.storage.files(self.name)
        return " ".join(there[name].token if name in there else "none" for name in (MANIFEST, *names))

    def manifest(self) -> dict[str, Any]:
        """What was written with the stage; fetched if need be."""
        if not self._is_here():
            self.storage.fetch([self], is_manifest)
        return super().manifest()

    def read(self, name: str) -> bytes:
        """A file as it was when the stage was finished. Raises StageError where it is another."""
        if not ((self.path / name).is_file() and self._is_here()):
            self.storage.fetch([self], lambda wanted: wanted == name)
        return super().read(name)

    def faults(self, concerned: Callable[[str], bool] = every) -> Iterator[str]:
        """What is wrong, file by file. Files of this machine that are, are fetched once more."""
        self.storage.fetch([self], concerned)
        for name in self.manifest()["files"]:
            if concerned(name):
                yield from self._fault(name)

    def damage(self) -> Iterator[str]:
        """What is wrong in the bucket, whatever this machine has."""
        for name, facts in self.manifest()["files"].items():
            file = self.path / f".verified-{uuid.uuid4().hex[:8]}"
            try:
                self.storage.bucket.download(f"{self.name}/{name}", file)
                if sha256(file) != facts["sha256"]:
                    yield f"{self.place}/{name} does not match its manifest"
            except FileNotFoundError:
                yield f"{self.place}/{name} is missing"
            finally:
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take the stage away; a kill in between leaves no manifest, so nobody's result."""
        self.storage.take_away(self.name)
        shutil.rmtree(self.path, ignore_errors=True)

    def _fault(self, name: str) -> Iterator[str]:
        def alone(wanted: str) -> bool:
            return wanted == name

        if not any(True for _ in super().faults(alone)):
            return
        (self.path / name).unlink(missing_ok=True)
        self.storage.fetch([self], alone)
        yield from super().faults(alone)

    def _become(self, finished: Path) -> None:
        """Be what lies in this folder, its manifest included, unless another was as fast."""
        if self.done:
            return
        files = sorted(path for path in finished.rglob("*") if path.is_file() and path.name != MANIFEST)
        token = self.storage.put_stage(
            self.name,
            {file.relative_to(finished).as_posix(): file for file in files},
            (finished / MANIFEST).read_bytes(),
        )
        (finished / TOKEN).write_text(token)
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # another process of this machine is fetching it already
            finished.rename(self.path)

    def _is_here(self) -> bool:
        token = self.storage.token(self.name)
        return token is not None and self.is_current(token)

    def is_current(self, token: str) -> bool:
        """True where what is on this machine is of this manifest."""
        try:
            return (self.path / TOKEN).read_text() == token and (self.path / MANIFEST).is_file()
        except OSError:
            return False

    def begin_anew(self, manifest: bytes, token: str) -> None:
        """Keep this manifest, and nothing that was here before."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / MANIFEST, manifest)
        write_whole(self.path / TOKEN, token.encode())

    def forget(self) -> None:
        """Keep nothing of it on this machine: it is gone where it lies."""
        shutil.rmtree(self.path, ignore_errors=True)

    def lacks(self, concerned: Callable[[str], bool]) -> Sequence[tuple[str, dict[str, Any]]]:
        """Files that are concerned and not on this machine, with what the manifest says of them."""
        files = Stage.manifest(self)["files"].items()
        return [
            (name, facts) for name, facts in files if concerned(name) and not (self.path / name).is_file()
        ]

    def keep(self, name: str, content: bytes, facts: dict[str, Any]) -> None:
        """Keep a file as it was fetched, if it is what was written."""
        if hashlib.sha256(content).hexdigest() == facts["sha256"]:
            write_whole(self.path / name, content)

    def keep_file(self, name: str, file: Path, facts: dict[str, Any]) -> None:
        """The same of a file that was fetched under another name; it is gone after that."""
        if sha256(file) == facts["sha256"]:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            file.replace(self.path / name)
        file.unlink(missing_ok=True)


def write_whole(file: Path, content: bytes) -> None:
    """A file of this machine that is whole or not there, whoever else writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
