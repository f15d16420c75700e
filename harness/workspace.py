"""Where every file lives, and who may make it. Stages are folders named by the fingerprint of their inputs.

Every later sweep of a workspace finds what earlier ones made.

    datasets/<dataset_id>/                  the training pictures of one recipe
    adapters/<run_id>/steps-000100/         one snapshot of one training run
    images/<draw_id>/<chunk_id>/            some pictures of one draw, and their rows
    scores/<metric>/<draw_id>-<chunk_id>/   one metric's scores of those pictures
    sweeps/<name>/                          tables, report, the sweep as it was read (sweep.json, the last to
                                            be written) and as it is being run (plan.json, the first)
"""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from harness.errors import WorkspaceError
from harness.stage import Stage

PLAN = "plan.json"

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

    def take_away_damaged(
        self, stage: Stage, claim: tuple[str, str], concerned: Callable[[str], bool] = lambda _: True
    ) -> bool:
        """True where the files concerned were damaged: the stage is gone then, and can be made again."""
        if stage.whole(concerned):
            return False
        with self.claim(*claim):
            if stage.done and not stage.whole(concerned):
                stage.remove()
        return True

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
