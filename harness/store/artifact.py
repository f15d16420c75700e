"""One artifact: temporary folder → manifest last → rename.

An artifact is finished exactly when it holds `manifest.json`, so a killed process leaves nothing that looks
like a result. The manifest has the hash of every file, so damage is found. `remote.py` has the artifacts of a
bucket.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import ArtifactError, WorkspaceError

MANIFEST = "manifest.json"
DIGEST = "digest"  # of a JSON file's other entries
SHARE = "share the workspace (`chmod -R g+rwX WORKSPACE`, `umask 002`)"
UMASK = os.umask(0o022)
os.umask(UMASK)
RECORDED = (
    "lora-sweep-harness",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "open_clip_torch",
    "ray",
)

# File too large: a limit on single files, as some shared file systems have.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EROFS)


def every(name: str) -> bool:
    """All files of an artifact."""
    return True


def is_manifest(name: str) -> bool:
    """The manifest alone."""
    return name == MANIFEST


def is_training_state(name: str) -> bool:
    """Of a checkpoint's files, those that training goes on from."""
    return name.startswith("training_state.")


def is_adapter(name: str) -> bool:
    """Of a checkpoint's files, those that images are generated with."""
    return not is_training_state(name)


@dataclass(frozen=True)
class Artifact:
    """One folder of the store. `path` is where it is on this machine, once it is finished and `fetch`ed.

    `begun` is the folder, on the same file system, in which it is built and from which it is deleted.
    """

    path: Path
    begun: Path

    @property
    def done(self) -> bool:
        """True when the manifest is there."""
        return (self.path / MANIFEST).is_file()

    @property
    def place(self) -> str:
        """Where it lies, for messages."""
        return str(self.path)

    def fetch(self, concerned: Callable[[str], bool] = every) -> Path:
        """The folder of a finished artifact, its files with names that are `concerned` on this machine."""
        return self.path

    def contents(self) -> dict[str, int]:
        """Files of a folder, finished or not, by name, and their bytes; none where there is no folder.

        Those that vanish meanwhile, because another process removes them, are left out.
        """
        found = {}
        for where, _, names in os.walk(self.path):
            for name in names:
                file = Path(where, name)
                with suppress(FileNotFoundError):
                    found[file.relative_to(self.path).as_posix()] = file.stat().st_size
        return found

    def changed_at(self) -> datetime:
        """When the folder was last changed; now where it is gone."""
        try:
            return datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
        except FileNotFoundError:
            return datetime.now(UTC)

    def manifest(self) -> dict[str, Any]:
        """What was written with the artifact: files with sha256 and size, facts, versions, time, host."""
        try:
            loaded = read_json(self.path / MANIFEST)
            if not isinstance(loaded["facts"], dict):
                raise ValueError("its facts are no mapping")
            if not all(isinstance(facts["sha256"], str) for facts in loaded["files"].values()):
                raise ValueError("its files have no hashes")
            if outside := [name for name in loaded["files"] if not is_inside(name)]:
                raise ValueError(f"it names a file outside its folder, {outside[0]!r:.80}")
        except PermissionError:
            raise _not_readable(f"{self.place}/{MANIFEST}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{self.place}/{MANIFEST} cannot be read ({error}); delete the folder and run again"
            ) from None
        return loaded

    def stamp(self, *names: str) -> str:
        """Size and time of change of the manifest and of these files; another text once one is another."""
        return " ".join(_stamp(f"{self.path}/{name}") for name in (MANIFEST, *names))

    def read(self, name: str) -> bytes:
        """A file as it was when the artifact was finished. Raises ArtifactError if it is another."""
        try:
            content = (self.path / name).read_bytes()
        except PermissionError:
            raise _not_readable(f"{self.place}/{name}") from None
        except OSError as error:
            raise ArtifactError(f"{self.place}/{name} cannot be read: {error.strerror}") from None
        facts = self.manifest()["files"].get(name)
        if facts is None or hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ArtifactError(f"{self.place}/{name} does not match its manifest")
        return content

    def verify(self) -> None:
        """Raise ArtifactError for the first file that is missing or does not match its hash."""
        for fault in self.faults():
            raise ArtifactError(f"{fault}; delete {self.place} and run again")

    def whole(self, concerned: Callable[[str], bool] = every) -> bool:
        """True where the manifest can be read and the files with names that are `concerned` match it."""
        try:
            return not any(True for _ in self.faults(concerned))
        except ArtifactError:
            return False

    def faults(self, concerned: Callable[[str], bool] = every) -> Iterator[str]:
        """What is wrong, file by file. Raises ArtifactError where the manifest cannot be read."""
        for name, facts in self.manifest()["files"].items():
            file = self.path / name
            if not concerned(name):
                continue
            try:
                if not file.is_file():
                    yield f"{self.place}/{name} is missing"
                elif sha256(file) != facts["sha256"]:
                    yield f"{self.place}/{name} does not match its manifest"
            except PermissionError:
                raise _not_readable(f"{self.place}/{name}") from None

    def damage(self) -> Iterator[str]:
        """What is wrong where the artifact lies, which need not be this machine, file by file."""
        return self.faults()

    def remove(self) -> None:
        """Remove the artifact in one step, so that no other process sees a part of it."""
        with suppress(FileNotFoundError):
            self._move_away()

    @contextmanager
    def build(self, **facts: Any) -> Iterator[Path]:
        """Give a temporary folder to fill; at the end it becomes the artifact, after an error it is deleted.

        `facts` (JSON) are kept in the manifest. Raises WorkspaceError where the disk is full or not writable.
        """
        started = time.monotonic()
        temporary = self.begun / f"{self.path.name}-{uuid.uuid4().hex[:8]}"
        try:
            with explaining_lack_of_room(self.path):
                temporary.mkdir(parents=True)
                yield temporary
                seconds = time.monotonic() - started
                write_json(temporary / MANIFEST, _manifest(temporary, facts, seconds=seconds))
                _open_to_all_that_may(temporary)
                self._commit(temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _commit(self, finished: Path) -> None:
        """Be what lies in this folder, its manifest included, unless another process was faster."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self.done:
            try:
                finished.rename(self.path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if not self.done:
                self.remove()  # a folder without a manifest, as of a deletion that was interrupted

    def _move_away(self) -> None:
        self.begun.mkdir(parents=True, exist_ok=True)
        gone = self.begun / f"{self.path.name}-{uuid.uuid4().hex[:8]}"
        self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def explaining_lack_of_room(path: Path) -> Iterator[None]:
    """Say in one line that what the block writes has no room. Other errors pass through."""
    try:
        yield
    except Exception as error:
        # safetensors tells the system's error in its message alone.
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = int(told[1]) if told else getattr(error, "errno", None)
        # A file elsewhere, as of a model, may not be allowed to be read: that has nothing to do with room.
        file = str(getattr(error, "filename", ""))
        here = file.startswith(str(path.parent))
        if number not in NO_ROOM and not (number in NOT_WRITABLE and here):
            raise
        advice = "make room" if number in NO_ROOM else f"ask the owner of {file} to {SHARE}"
        raise WorkspaceError(
            f"{path}: {os.strerror(number)}; {advice}, or choose another --workspace"
        ) from error


def _not_readable(place: str) -> WorkspaceError:
    return WorkspaceError(f"{place} may not be read by this user; ask its owner to {SHARE}")


def _stamp(file: str) -> str:
    try:
        found = os.stat(file)
    except OSError:
        return "none"
    return f"{found.st_size}:{found.st_mtime_ns}"


def sha256(file: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _open_to_all_that_may(folder: Path) -> None:
    """Give what libraries wrote for its owner alone the modes of the user's umask: workspaces are shared."""
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        wanted = (0o777 if path.is_dir() else 0o666) & ~UMASK
        if mode & wanted != wanted:
            path.chmod(stat.S_IMODE(mode) | wanted)


def is_inside(name: str) -> bool:
    """True for the name of a file below a folder: relative, without `..`, as every manifest must have it."""
    parts = name.split("/")
    return not (set(parts) & {"", ".", ".."}) and not any(sign in name for sign in ("\\", "\0", ":"))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """What `write_json` wrote. Raises OSError, and ValueError where it is another text than that."""
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(loaded, dict):
        raise ValueError("it is no mapping")
    digest = loaded.pop(DIGEST, None)
    if digest is not None and digest != _digest(loaded):
        raise ValueError("it does not match its digest")
    return loaded


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, with its digest, to a file that is whole or not there, even after a power cut."""
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            json.dump({**content, DIGEST: _digest(content)}, handle, indent=1, sort_keys=True)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@cache
def versions() -> Mapping[str, str]:
    """Versions of the packages that decide numbers, as installed."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _manifest(folder: Path, facts: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "files": {
            path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in files
        },
        "facts": facts,
        "seconds": round(seconds, 3),
        "versions": versions(),
        "host": socket.gethostname(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
