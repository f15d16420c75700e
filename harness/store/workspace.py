"""Where every file of a workspace lies. Artifacts are folders named by the fingerprint of their inputs.

Every later sweep of a workspace finds what earlier ones made.

    datasets/<dataset_id>/                  the training images of one recipe
    parts/<dataset_id>/<place>/             some of them, until all are generated
    latents/<dataset_id>/<view>/            their VAE posteriors: center crops, or those mirrored
    texts/<model_id>/<chunk_id>/            embeddings of some prompts by one model
    adapters/<run_id>/steps-000100/         one checkpoint of one training run
    images/<arm_id>/<chunk_id>/             some images of one arm, and their rows
    scores/<metric>/<arm_id>-<chunk_id>/    one metric's scores of those images
    sweeps/<name>/                          tables, report, the sweep as it was read (sweep.json, the last to
                                            be written) and as it is being run (plan.json, the first)
    sweeps/<name>/.begun/                   artifacts that the sweep's workers are building
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import ArtifactError, WorkspaceError
from harness.store import Storage, open_storage
from harness.store.artifact import Artifact, is_inside

BEGUN = ".begun"
PLANS_LOCK = ".locks/plans-all"
OF_FIRST_EDITION = "draws.parquet"  # a table of a sweep; it is arms.parquet now
PLAN = "plan.json"
REPORT = "report.html"  # of a sweep, the page that people open

PlaceKind = Literal["dataset", "part", "latents", "texts", "checkpoint", "images", "scores", "begun"]
FOLDERS: dict[PlaceKind, tuple[str, int]] = {  # and how far below its artifacts are
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
    """A folder of the store, finished or not."""

    kind: PlaceKind
    artifact: Artifact


class Workspace:
    """All paths of a workspace, joined here alone.

    `address` is what its user calls it. `root` is a folder on this machine: the workspace itself, or where
    files of one that lies elsewhere are while they are in use.
    """

    def __init__(self, address: Path | str, *, sweep: str | None = None) -> None:
        """Nothing is created before something is built. `sweep`: the one whose folder it is built in."""
        self._sweep = sweep
        begun = BEGUN if sweep is None else f"sweeps/{sweep}/{BEGUN}"
        self._storage: Storage = open_storage(address, begun)
        self.address, self.root = self._storage.address, self._storage.root

    def __reduce__(self) -> tuple[Any, ...]:
        """It is opened afresh where it is sent to."""
        return _opened, (self.address, self._sweep)

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
        """The workspace of an image that has a URL, else None, and its file on this machine."""
        if "://" not in image:
            return None, Path(image)
        address, _, name = image.rpartition("/images/")
        return address, cls(address).file(f"images/{name}")

    def exists(self) -> bool:
        """False where there is nothing at all."""
        return self._storage.exists()

    def listing(self) -> AbstractContextManager[None]:
        """While the block runs, what is finished may be answered from one cached listing.

        For questions about thousands of artifacts: each request to a bucket takes its time.
        """
        return self._storage.listing()

    def invalidate(self) -> None:
        """Other processes have made artifacts: the next listing is taken anew."""
        self._storage.invalidate()

    def fetch(self, artifacts: Iterable[Artifact], concerned: Callable[[str], bool]) -> None:
        """Bring files of many artifacts to this machine; a missing one is an error when it is read."""
        self._storage.fetch(artifacts, concerned)

    def dataset(self, dataset_id: str) -> Artifact:
        """The training images of one recipe."""
        return self.artifact(f"datasets/{dataset_id}")

    def part(self, dataset_id: str, first: int) -> Artifact:
        """Some training images of a recipe, from this index on."""
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
        """Some images of one arm."""
        return self.artifact(f"images/{arm_id}/{chunk_id}")

    def image_chunks(self, arm_id: str) -> list[Artifact]:
        """Finished images of one arm, in a stable order."""
        return self._finished(f"images/{arm_id}")

    def _finished(self, folder: str) -> list[Artifact]:
        names = self._storage.folders(folder)
        artifacts = (self.artifact(f"{folder}/{name}") for name in names if not name.startswith("."))
        return [artifact for artifact in artifacts if artifact.done]

    def scores(self, metric: str, chunk: Artifact) -> Artifact:
        """One metric's scores of one image chunk. `metric` is kind and fingerprint."""
        return self.artifact(f"scores/{metric}/{chunk.path.parent.name}-{chunk.path.name}")

    def artifact(self, name: str) -> Artifact:
        """The artifact at a path as the tables hold it. Raises ArtifactError if it is outside."""
        if not is_inside(name):
            raise ArtifactError(f"{name!r:.80} is no path below the workspace {self.address}")
        return self._storage.artifact(name)

    def file(self, name: str) -> Path:
        """A file of an artifact by its path in the tables, on this machine; it need not exist.

        For all files of an artifact use `Artifact.fetch`.
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

        `here` is where they are on this machine; None: in the folder that `sweep` gives.
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
        """Every folder of the store, and what is being built or was begun, in a stable order."""
        for kind, (top, depth) in FOLDERS.items():
            parents = [top] if depth == 1 else [f"{top}/{name}" for name in self._storage.folders(top)]
            for parent in parents:
                for name in self._storage.folders(parent):
                    yield Place(kind=kind, artifact=self.artifact(f"{parent}/{name}"))
        for path in sorted((self.root / "sweeps").glob(f"*/{BEGUN}/*")):
            yield Place(kind="begun", artifact=Artifact(path, self.root / BEGUN))

    def relative(self, path: Path) -> str:
        """A path as the tables hold it: relative to the workspace, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def shown(self, path: Path) -> str:
        """A path below the root, as the user knows it."""
        return f"{self.address}/{self.relative(path)}"

    def check_writable(self) -> None:
        """Raise WorkspaceError, before any work, when nothing can be written here."""
        with self.marker():
            pass

    def marker(self) -> AbstractContextManager[str]:
        """A temporary marker, so that other nodes can check that they `see` the same storage."""
        return self._storage.marker()

    def sees(self, marker: str) -> bool:
        """True if the marker is there."""
        return self._storage.sees(marker)

    @contextmanager
    def plans_locked(self) -> Iterator[None]:
        """While the block runs, no sweep begins and no garbage is collected."""
        with self._storage.lock(PLANS_LOCK):
            yield

    def driven(self) -> list[str]:
        """The sweeps that are being run now, by name."""
        return [name for name in self.sweep_names() if self._storage.locked(_driver_lock(name))]

    @contextmanager
    def drive(self, name: str) -> Iterator[None]:
        """Be the one driver of a sweep; what killed builders of it left is removed.

        Raises WorkspaceError while another process drives it, or if the first edition wrote this workspace.
        """
        old = sorted(file.parent.name for file in (self.root / "sweeps").glob(f"*/{OF_FIRST_EDITION}"))
        if old:
            raise WorkspaceError(
                f"{self.address} holds a sweep of the harness's first edition ({old[0]!r}), which this one "
                "does not read; use another --workspace"
            )
        with self._storage.lock_if_free(_driver_lock(name)) as free:
            if not free:
                raise WorkspaceError(
                    f"sweep {name!r} in {self.address} is being run by another process; "
                    "wait for it, or use another --workspace"
                )
            shutil.rmtree(self.sweep(name) / BEGUN, ignore_errors=True)
            yield


def _driver_lock(sweep: str) -> str:
    return f"sweeps/{sweep}/.driver.lock"


def _opened(address: str, sweep: str | None) -> Workspace:
    return Workspace(address, sweep=sweep)
