"""Where every file lives, and how one comes to be: temporary folder → manifest last → rename.

A stage is a folder addressed by the fingerprint of its inputs. It is finished exactly when it holds
`manifest.json`, so a killed process leaves nothing that could be taken for a result, and every later
sweep of the workspace finds what earlier ones made.

    datasets/<dataset_id>/                  the training pictures of one recipe
    adapters/<run_id>/steps-000100/         one snapshot of one training run
    images/<draw_id>/<chunk_id>/            some pictures of one draw, and their rows
    scores/<metric>/<draw_id>-<chunk_id>/   one metric's scores of those pictures
    sweeps/<name>/                          tables, report, the sweep as it was read (sweep.json, the last to
                                            be written) and as it is being run (plan.json, the first)
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from harness.errors import StageError, WorkspaceError

MANIFEST = "manifest.json"
EMA = "ema"  # in a snapshot, the folder of the averaged export
PLAN = "plan.json"
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

LEFT_OVERS = {  # by kind of claim: what a killed builder may leave behind
    "dataset": ("datasets/.tmp-{}-*",),
    "run": ("adapters/{}/.tmp-*",),
    "draw": ("images/{}/.tmp-*", "scores/*/.tmp-{}-*"),
    "plans": (),
}

PlaceKind = Literal["dataset", "snapshot", "pictures", "scores"]
FOLDERS: dict[PlaceKind, str] = {
    "dataset": "datasets/*",
    "snapshot": "adapters/*/*",
    "pictures": "images/*/*",
    "scores": "scores/*/*",
}


@dataclass(frozen=True)
class Stage:
    """One folder of the store. `path` exists only when the stage is finished."""

    path: Path

    @property
    def done(self) -> bool:
        """True when the manifest is there."""
        return (self.path / MANIFEST).is_file()

    def manifest(self) -> dict[str, Any]:
        """What was written with the stage: files with sha256 and size, facts, versions, time, host."""
        try:
            loaded: dict[str, Any] = json.loads((self.path / MANIFEST).read_text())
            if not isinstance(loaded["facts"], dict):
                raise ValueError("its facts are no mapping")
            if not all(isinstance(facts["sha256"], str) for facts in loaded["files"].values()):
                raise ValueError("its files have no hashes")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StageError(
                f"{self.path / MANIFEST} cannot be read ({error}); delete the folder and run again"
            ) from None
        return loaded

    def read(self, name: str) -> bytes:
        """A file as it was when the stage was finished. Raises StageError where it is another."""
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise StageError(f"{self.path / name} cannot be read: {error.strerror}") from None
        facts = self.manifest()["files"].get(name)
        if facts is None or hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise StageError(f"{self.path / name} does not match its manifest")
        return content

    def verify(self) -> None:
        """Raise StageError for the first file that is missing or does not match its hash."""
        for fault in self.faults():
            raise StageError(f"{fault}; delete {self.path} and run again")

    def whole(self, concerned: Callable[[str], bool] = lambda _: True) -> bool:
        """True where the manifest can be read and the files with names that are `concerned` match it."""
        try:
            return not any(True for _ in self.faults(concerned))
        except StageError:
            return False

    def faults(self, concerned: Callable[[str], bool] = lambda _: True) -> Iterator[str]:
        """What is wrong, file by file. Raises StageError where the manifest cannot be read."""
        for name, facts in self.manifest()["files"].items():
            file = self.path / name
            if not concerned(name):
                continue
            if not file.is_file():
                yield f"{file} is missing"
            elif sha256(file) != facts["sha256"]:
                yield f"{file} does not match its manifest"

    def remove(self) -> None:
        """Take the stage away; a kill in between leaves no manifest, so nobody's result."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def build(self, **facts: Any) -> Iterator[Path]:
        """Give a temporary folder to fill; when the block ends well it becomes the stage, else it is gone.

        `facts` (JSON) are kept in the manifest. Raises WorkspaceError where the disk is full or not writable.
        """
        started = time.monotonic()
        temporary = self.path.parent / f".tmp-{self.path.name}-{uuid.uuid4().hex[:8]}"
        try:
            with explaining_lack_of_room(self.path):
                temporary.mkdir(parents=True)
                yield temporary
                seconds = time.monotonic() - started
                write_json(temporary / MANIFEST, _manifest(temporary, facts, seconds=seconds))
                if not self.done:
                    shutil.rmtree(self.path, ignore_errors=True)  # without manifest it is nobody's result
                    temporary.rename(self.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder where a stage is, or was begun. `claim` is what its builder holds."""

    kind: PlaceKind
    stage: Stage
    claim: tuple[str, str]


class Workspace:
    """All paths of a workspace; nobody else joins them."""

    def __init__(
        self, root: Path | str, *, waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """Nothing is created before something is built. `waiting` is entered while another holds a claim."""
        self.root = Path(root).expanduser().resolve()
        self.waiting = waiting

    def dataset(self, dataset_id: str) -> Stage:
        """The training pictures of one recipe."""
        return Stage(self.root / "datasets" / dataset_id)

    def snapshot(self, run_id: str, steps: int) -> Stage:
        """A training run after `steps` optimizer steps."""
        return Stage(self.root / "adapters" / run_id / f"steps-{steps:06d}")

    def snapshots(self, run_id: str) -> dict[int, Stage]:
        """Finished snapshots of a run by steps, ascending; resumable checkpoints are among them."""
        found = {
            int(p.name.removeprefix("steps-")): Stage(p)
            for p in (self.root / "adapters" / run_id).glob("steps-*")
        }
        return {steps: found[steps] for steps in sorted(found) if found[steps].done}

    def images(self, draw_id: str, chunk_id: str) -> Stage:
        """Some pictures of one draw."""
        return Stage(self.root / "images" / draw_id / chunk_id)

    def image_chunks(self, draw_id: str) -> list[Stage]:
        """Finished pictures of one draw, in a stable order."""
        stages = (Stage(path) for path in sorted((self.root / "images" / draw_id).glob("[!.]*")))
        return [stage for stage in stages if stage.done]

    def scores(self, metric: str, chunk: Stage) -> Stage:
        """One metric's scores of one image chunk. `metric` is kind and fingerprint."""
        return Stage(self.root / "scores" / metric / f"{chunk.path.parent.name}-{chunk.path.name}")

    def sweep(self, name: str) -> Path:
        """The folder of a sweep's tables and report."""
        return self.root / "sweeps" / name

    def sweep_folders(self) -> list[Path]:
        """The folders of all sweeps, by name."""
        return sorted(path for path in (self.root / "sweeps").glob("[!.]*") if path.is_dir())

    def places(self) -> Iterator[Place]:
        """Every folder of the store, left-overs of killed builders among them, in a stable order."""
        for kind, pattern in FOLDERS.items():
            for path in sorted(path for path in self.root.glob(pattern) if path.is_dir()):
                yield Place(kind=kind, stage=Stage(path), claim=_claim_of(kind, path))

    def relative(self, path: Path) -> str:
        """A path as the tables hold it: relative to the workspace, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def check_writable(self) -> None:
        """Raise WorkspaceError, before any work, when nothing can be written here."""
        probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise WorkspaceError(f"--workspace {self.root} cannot be written: {error.strerror}") from None

    @contextmanager
    def claim(self, kind: str, identity: str) -> Iterator[None]:
        """Hold what is being made, so that nobody makes it twice; wait while another process does.

        The operating system lets go of a dead process's claim. Left-overs of a killed builder are removed.
        """
        lock = self._lock(kind, identity)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with self.waiting():
            held = FileLock(lock).acquire()
        with held:
            for pattern in LEFT_OVERS[kind]:
                for left_over in self.root.glob(pattern.format(identity)):
                    shutil.rmtree(left_over, ignore_errors=True)
            yield

    @contextmanager
    def claim_if_free(self, kind: str, identity: str) -> Iterator[bool]:
        """Hold it, and say so; or say False, at once, while another process does."""
        lock = self._lock(kind, identity)
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(lock).acquire(timeout=0)
        except Timeout:
            yield False
            return
        with held:
            yield True

    @contextmanager
    def claim_plans(self) -> Iterator[None]:
        """Let no sweep begin, and nobody remove what sweeps do not need, while the block runs."""
        with self.claim("plans", "all"):
            yield

    def claimed(self, kind: str, identity: str) -> bool:
        """True while somebody holds it. Makes nothing."""
        if not self._lock(kind, identity).exists():
            return False
        with self.claim_if_free(kind, identity) as free:
            return not free

    def _lock(self, kind: str, identity: str) -> Path:
        return self.root / ".locks" / f"{kind}-{identity}"

    @contextmanager
    def drive(self, name: str) -> Iterator[None]:
        """Be the one driver of a sweep. Raises WorkspaceError while another process drives it."""
        folder = self.sweep(name)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".driver.lock", timeout=0):
                yield
        except Timeout:
            raise WorkspaceError(
                f"sweep {name!r} in {self.root} is being run by another process; "
                "wait for it, or use another --workspace"
            ) from None


def _claim_of(kind: PlaceKind, path: Path) -> tuple[str, str]:
    """What the builder of this folder, or of the temporary one that it is, holds."""
    name = path.name
    if name.startswith(".tmp-"):
        name = name.removeprefix(".tmp-").rpartition("-")[0]
    match kind:
        case "dataset":
            return "dataset", name
        case "snapshot":
            return "run", path.parent.name
        case "pictures":
            return "draw", path.parent.name
        case "scores":
            return "draw", name.partition("-")[0]


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
        here = str(getattr(error, "filename", "")).startswith(str(path.parent))
        if number not in NO_ROOM and not (number in NOT_WRITABLE and here):
            raise
        raise WorkspaceError(
            f"{path}: {os.strerror(number)}; make room or choose another --workspace"
        ) from error


def sha256(file: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_json(file: Path, content: Any) -> None:
    """Write JSON to a file that is whole or not there, even after a power cut."""
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w") as handle:
            json.dump(content, handle, indent=1, sort_keys=True)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def versions() -> dict[str, str]:
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
