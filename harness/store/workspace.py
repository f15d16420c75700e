"""Where every file lives, and who may make it. Stages are folders named by the fingerprint of their inputs.

Every later sweep of a workspace finds what earlier ones made.

    datasets/<dataset_id>/                  the training images of one recipe
    parts/<dataset_id>/<place>/             some of them, until all are drawn
    latents/<dataset_id>/<view>/            their VAE posteriors: the middle of each, or that mirrored
    texts/<model_id>/<chunk_id>/            some prompts as a model's text encoders have them
    adapters/<run_id>/steps-000100/         one checkpoint of one training run
    images/<arm_id>/<chunk_id>/            some images of one draw, and their rows
    scores/<metric>/<arm_id>-<chunk_id>/   one metric's scores of those images
    sweeps/<name>/                          tables, report, the sweep as it was read (sweep.json, the last to
                                            be written) and as it is being run (plan.json, the first)

Which folders of a workspace hold stages, and what the builder of each holds while it is at work.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import ArtifactError, WorkspaceError
from harness.store import Storage, open_storage
from harness.store.artifact import Artifact, every, is_inside
from harness.store.backend import Waiting

PARTIAL: dict[str, tuple[str, ...]] = {  # by kind of claim: what a killed builder may leave behind
    "dataset": ("datasets/.tmp-{}-*",),
    "part": ("parts/*/.tmp-{}-*",),
    "latents": ("latents/{}/.tmp-*",),
    "texts": ("texts/{}/.tmp-*",),
    "run": ("adapters/{}/.tmp-*",),
    "arm": ("images/{}/.tmp-*",),
    "scores": ("scores/*/.tmp-{}-*",),
    "plans": (),
}

LOCKS = ".locks"
OF_FIRST_EDITION = "draws.parquet"  # a table of a sweep; it is arms.parquet now
SHARES = 8  # of each draw: so many workers at most are at the images of one

PlaceKind = Literal["dataset", "part", "latents", "texts", "checkpoint", "images", "scores"]
FOLDERS: dict[PlaceKind, tuple[str, int]] = {  # and how far below its stages are
    "dataset": ("datasets", 1),
    "part": ("parts", 2),
    "latents": ("latents", 2),
    "texts": ("texts", 2),
    "checkpoint": ("adapters", 2),
    "images": ("images", 2),
    "scores": ("scores", 2),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder where a stage is, or was begun. `claim` is what its builder holds."""

    kind: PlaceKind
    artifact: Artifact
    claim: tuple[str, str]


def claim_of(kind: PlaceKind, path: Path) -> tuple[str, str]:
    """What the builder of this folder, or of the temporary one that it is, holds."""
    name = path.name
    if name.startswith(".tmp-"):
        name = name.removeprefix(".tmp-").rpartition("-")[0]
    match kind:
        case "dataset" | "part" | "scores":
            return kind, name
        case "latents" | "texts":
            return kind, path.parent.name
        case "checkpoint":
            return "run", path.parent.name
        case "images":
            return "arm", path.parent.name


def locks_of(kind: str, identity: str) -> list[str]:
    """What is locked to hold all of it. A draw is held share by share."""
    if kind == "arm":
        return [share_lock(identity, share) for share in range(SHARES)]
    return [f"{LOCKS}/{kind}-{identity}"]


def share_lock(arm_id: str, share: int) -> str:
    """What is locked to hold one share of a draw."""
    return f"{LOCKS}/draw-{arm_id}-{share}"


PLAN = "plan.json"
REPORT = "report.html"  # of a sweep, the page that people open


class Workspace:
    """All paths of a workspace, joined here alone.

    `address` is what its user calls it. `root` is a folder on this machine: the workspace itself, or where
    files of one that lies elsewhere are while they are worked with.
    """

    def __init__(self, address: Path | str, *, waiting: Waiting = nullcontext) -> None:
        """Nothing is created before something is built. `waiting` is entered while another holds a claim."""
        self._storage: Storage = open_storage(address)
        self.address, self.root = self._storage.address, self._storage.root
        self.waiting = waiting

    def __reduce__(self) -> tuple[type["Workspace"], tuple[str]]:
        """It is opened afresh where it is sent to; who waits there, and for whom, is not known here."""
        return Workspace, (self.address,)

    def while_waiting(self, waiting: Waiting) -> "Workspace":
        """The same, with this entered while another holds a claim."""
        return Workspace(self.address, waiting=waiting)

    @classmethod
    def of_sweep(cls, folder: Path | str) -> tuple["Workspace", Path]:
        """The workspace that a sweep's folder lies in, and the folder on this machine, as it is now."""
        if "://" not in str(folder):
            return cls(Path(folder).resolve().parent.parent), Path(folder)
        address, found, name = str(folder).rstrip("/").rpartition("/sweeps/")
        workspace = cls(address or str(folder))
        if not found or "/" in name or name not in workspace.sweep_names():
            raise WorkspaceError(
                f"no such folder: {folder}; give WORKSPACE/sweeps/NAME, which `harness run` prints"
            )
        return workspace, workspace.fetch_sweep(name)

    @classmethod
    def of_image(cls, image: str) -> tuple[str | None, Path]:
        """The workspace of an image that has a URL, else null, and its file on this machine."""
        if "://" not in image:
            return None, Path(image)
        address, _, name = image.rpartition("/images/")
        return address, cls(address).file(f"images/{name}")

    def exists(self) -> bool:
        """False where there is nothing at all."""
        return self._storage.exists()

    def survey(self) -> AbstractContextManager[None]:
        """While the block runs, what is finished may be answered from one look at all there is.

        For questions about thousands of artifacts: in a bucket each listing takes its time.
        """
        return self._storage.survey()

    def look_again(self) -> None:
        """Others have made things: the next survey is to see them."""
        self._storage.look_again()

    def fetch(self, artifacts: Iterable[Artifact], concerned: Callable[[str], bool]) -> None:
        """Bring files of many stages to this machine at once; one that cannot be had is found when read."""
        self._storage.fetch(artifacts, concerned)

    def dataset(self, dataset_id: str) -> Artifact:
        """The training images of one recipe."""
        return self.artifact(f"datasets/{dataset_id}")

    def part(self, dataset_id: str, first: int) -> Artifact:
        """Some training images of a recipe, from this one on."""
        return self.artifact(f"parts/{dataset_id}/{dataset_id}-{first:06d}")

    def latents(self, dataset_id: str, view: str) -> Artifact:
        """The VAE posteriors of a dataset's images, all of them seen in the same way."""
        return self.artifact(f"latents/{dataset_id}/{view}")

    def texts(self, model_id: str, chunk_id: str) -> Artifact:
        """The embeddings of some texts by one model."""
        return self.artifact(f"texts/{model_id}/{chunk_id}")

    def text_chunks(self, model_id: str) -> list[Artifact]:
        """Finished embeddings by one model, in a stable order."""
        return self._finished(f"texts/{model_id}")

    def checkpoint(self, run_id: str, steps: int) -> Artifact:
        """A training run after `steps` optimizer steps."""
        return self.artifact(f"adapters/{run_id}/steps-{steps:06d}")

    def checkpoints(self, run_id: str) -> dict[int, Artifact]:
        """Finished checkpoints of a run by steps, ascending; resumable checkpoints are among them."""
        folder = f"adapters/{run_id}"
        found = {
            int(name.removeprefix("steps-")): self.artifact(f"{folder}/{name}")
            for name in self._storage.folders(folder)
            if name.startswith("steps-") and name.removeprefix("steps-").isdecimal()
        }
        return {steps: found[steps] for steps in sorted(found) if found[steps].done}

    def images(self, arm_id: str, chunk_id: str) -> Artifact:
        """Some images of one draw."""
        return self.artifact(f"images/{arm_id}/{chunk_id}")

    def image_chunks(self, arm_id: str) -> list[Artifact]:
        """Finished images of one draw, in a stable order."""
        return self._finished(f"images/{arm_id}")

    def _finished(self, folder: str) -> list[Artifact]:
        names = self._storage.folders(folder)
        artifacts = (self.artifact(f"{folder}/{name}") for name in names if not name.startswith("."))
        return [artifact for artifact in artifacts if artifact.done]

    def scores(self, metric: str, chunk: Artifact) -> Artifact:
        """One metric's scores of one image chunk. `metric` is kind and fingerprint."""
        return self.artifact(f"scores/{metric}/{chunk.path.parent.name}-{chunk.path.name}")

    def artifact(self, name: str) -> Artifact:
        """The stage at a path as the tables hold it. Raises ArtifactError for a path that leads elsewhere."""
        if not is_inside(name):
            raise ArtifactError(f"{name!r:.80} is no path below the workspace {self.address}")
        return self._storage.artifact(name)

    def file(self, name: str) -> Path:
        """A file of a stage by its path in the tables, on this machine; it is not there if it is gone.

        A whole stage's files are better asked of the stage.
        """
        folder, _, wanted = name.rpartition("/")
        artifact = self.artifact(folder)
        try:
            return artifact.fetch(lambda file: file == wanted) / wanted
        except ArtifactError:
            return artifact.path / wanted

    def sweep(self, name: str) -> Path:
        """The folder on this machine for a sweep's tables and report; `upload_sweep` is to follow."""
        return self.root / "sweeps" / name

    def fetch_sweep(self, name: str) -> Path:
        """The same, with the tables and whatever else is in it as they are now."""
        return self._storage.fetch_files(f"sweeps/{name}")

    def upload_sweep(self, name: str, files: Sequence[str], *, here: Path | None = None) -> None:
        """Bring files of a sweep's folder to where the store is; the last is there only if all are.

        `here` is where they are on this machine; null: in the folder that `sweep` gives.
        """
        self._storage.upload(f"sweeps/{name}", here or self.sweep(name), files)

    def upload_folder(self, name: str, folder: str, *, here: Path) -> None:
        """The same with all of a folder `here`, as one in a sweep's folder, in place of an older one."""
        files = sorted(file.relative_to(here).as_posix() for file in here.rglob("*") if file.is_file())
        self._storage.upload(f"sweeps/{name}/{folder}", here, files, alone=True)

    def sweep_names(self) -> list[str]:
        """The sweeps that the workspace has a folder of, by name."""
        return [name for name in self._storage.folders("sweeps") if not name.startswith(".")]

    def places(self) -> Iterator[Place]:
        """Every folder of the store, partial ones included, in a stable order."""
        for kind, (top, depth) in FOLDERS.items():
            parents = [top] if depth == 1 else [f"{top}/{name}" for name in self._storage.folders(top)]
            for parent in parents:
                for name in self._storage.folders(parent):
                    artifact = self.artifact(f"{parent}/{name}")
                    yield Place(kind=kind, artifact=artifact, claim=claim_of(kind, artifact.path))

    def relative(self, path: Path) -> str:
        """A path as the tables hold it: relative to the workspace, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def shown(self, path: Path) -> str:
        """A path below the root, as the user knows it."""
        return f"{self.address}/{self.relative(path)}"

    def check_writable(self) -> None:
        """Raise WorkspaceError, before any work, when nothing can be written here."""
        with self.mark():
            pass

    def mark(self) -> AbstractContextManager[str]:
        """A temporary marker, so that other nodes can check that they `see` the same storage."""
        return self._storage.mark()

    def sees(self, mark: str) -> bool:
        """True where the mark is there."""
        return self._storage.sees(mark)

    @contextmanager
    def claim(self, kind: str, identity: str) -> Iterator[None]:
        """Lock what is being made, so that it is made once; wait while another process holds the lock.

        A dead process's lock is released. Partial artifacts are removed.
        """
        with ExitStack() as claims:
            for lock in locks_of(kind, identity):
                claims.enter_context(self._storage.hold(lock, self.waiting))
            self.clear_partial(kind, identity)
            yield

    def clear_partial(self, kind: str, identity: str) -> None:
        """Remove what a killed builder left behind. The caller holds the claim."""
        for partial_folder in self._left_overs(kind, identity):
            shutil.rmtree(partial_folder, ignore_errors=True)

    def clear_partial_if_free(self, kind: str, identity: str) -> None:
        """Like `clear_partial`, but skips artifacts that are locked."""
        if self._left_overs(kind, identity):
            with self.claim_if_free(kind, identity, at_once=True) as free:
                if free:
                    self.clear_partial(kind, identity)

    def _left_overs(self, kind: str, identity: str) -> list[Path]:
        patterns = (pattern.format(identity) for pattern in PARTIAL[kind])
        return [path for pattern in patterns for path in self.root.glob(pattern)]

    def discard_corrupt(
        self, artifact: Artifact, claim: tuple[str, str], concerned: Callable[[str], bool] = every
    ) -> bool:
        """True where the files concerned were damaged: the stage is gone then, and can be made again."""
        if artifact.whole(concerned):
            return False
        with self.claim(*claim):
            if artifact.done and not artifact.whole(concerned):
                artifact.remove()
        return True

    @contextmanager
    def claim_if_free(self, kind: str, identity: str, *, at_once: bool = False) -> Iterator[bool]:
        """Hold it, and say so; or say False while another process does.

        `at_once`: also if that process may be dead; a later `claim` finds out.
        """
        with ExitStack() as claims:
            locks = locks_of(kind, identity)
            free = (claims.enter_context(self._storage.hold_if_free(lock, at_once=at_once)) for lock in locks)
            yield all(free)

    def claim_share(self, arm_id: str, share: int) -> AbstractContextManager[None]:
        """Hold one share of a draw's images; wait while another process does. See `image_stages.py`."""
        return self._storage.hold(share_lock(arm_id, share), self.waiting)

    def claim_share_if_free(self, arm_id: str, share: int) -> AbstractContextManager[bool]:
        """The same, or say False while another process does, or did and is dead: `claim_share` finds out."""
        return self._storage.hold_if_free(share_lock(arm_id, share), at_once=True)

    @contextmanager
    def claim_plans(self) -> Iterator[None]:
        """While the block runs, no sweep begins and no garbage is collected."""
        with self.claim("plans", "all"):
            yield

    def clear_claims(self) -> None:
        """Remove released lock files, if that is safe."""
        self._storage.clear_locks(LOCKS)

    def claimed(self, kind: str, identity: str) -> bool:
        """True while it is locked. Creates nothing."""
        return any(self._storage.held(lock) for lock in locks_of(kind, identity))

    @contextmanager
    def drive(self, name: str) -> Iterator[None]:
        """Be the one driver of a sweep.

        Raises WorkspaceError while another process drives it, or if the first edition wrote this workspace.
        """
        old = sorted(file.parent.name for file in (self.root / "sweeps").glob(f"*/{OF_FIRST_EDITION}"))
        if old:
            raise WorkspaceError(
                f"{self.address} holds a sweep of the harness's first edition ({old[0]!r}), which this one "
                "does not read; use another --workspace"
            )
        with self._storage.hold_if_free(f"sweeps/{name}/.driver.lock") as free:
            if not free:
                raise WorkspaceError(
                    f"sweep {name!r} in {self.address} is being run by another process; "
                    "wait for it, or use another --workspace"
                )
            yield
