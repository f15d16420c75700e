"""A backend behind a URL, with a cache folder on this machine.

A finished artifact is uploaded files first, manifest last: an artifact with a manifest is whole. A fetched
file is compared with the manifest's hashes before it gets its name. One listing of the store says which
artifacts are finished.
"""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import ArtifactError
from harness.store.artifact import MANIFEST, Artifact, every, is_manifest, sha256
from harness.store.listing import Listing
from harness.store.locks import Leases
from harness.store.objects import Bucket, Facts

COMMITS = ".locks"
TOKEN = ".token"  # beside the files on this machine: of which manifest in the bucket they are


@dataclass(frozen=True)
class RemoteArtifact(Artifact):
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

        Raises ArtifactError where one of them is gone or damaged.
        """
        self.storage.fetch([self], concerned)
        for name in self.manifest()["files"]:
            if concerned(name) and not (self.path / name).is_file():
                raise ArtifactError(f"{self.place}/{name} is missing or does not match its manifest")
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
        """What was written with the artifact; fetched if need be."""
        if not self._is_here():
            self.storage.fetch([self], is_manifest)
        return super().manifest()

    def read(self, name: str) -> bytes:
        """A file as it was when the artifact was finished. Raises ArtifactError where it is another."""
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
        """Remove the artifact, its manifest first: a kill in between leaves a partial one."""
        self.storage.remove(self.name)
        shutil.rmtree(self.path, ignore_errors=True)

    def _fault(self, name: str) -> Iterator[str]:
        def alone(wanted: str) -> bool:
            return wanted == name

        if not any(True for _ in super().faults(alone)):
            return
        (self.path / name).unlink(missing_ok=True)
        self.storage.fetch([self], alone)
        yield from super().faults(alone)

    def _commit(self, finished: Path) -> None:
        """Upload what lies in this folder, manifest last, unless another process was faster.

        The lock is held for the upload alone: two uploads of one artifact would mix their files.
        """
        files = sorted(path for path in finished.rglob("*") if path.is_file() and path.name != MANIFEST)
        lock = f"{COMMITS}/{self.name.replace('/', '-')}"
        token: str | None = None
        with self.storage.lock(lock):
            if not self.done:
                token = self.storage.upload_artifact(
                    self.name,
                    {file.relative_to(finished).as_posix(): file for file in files},
                    (finished / MANIFEST).read_bytes(),
                )
        self.storage.bucket.remove(list(self.storage.bucket.find(lock)))  # of no use: the artifact is done
        if token is None:
            return
        (finished / TOKEN).write_text(token)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
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
        files = Artifact.manifest(self)["files"].items()
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
    """Write a local file atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


TOPS = ("datasets", "parts", "latents", "texts", "adapters", "images", "scores")
SMALL = 4 * 2**20  # bytes: such files are read many at once, into memory
AT_ONCE = 256
LISTING_SECONDS = 60.0  # so long a listing serves again unless it was invalidated


class RemoteStorage:
    """The truth lies in the bucket. What is on this machine was made or fetched here, and can be deleted."""

    def __init__(self, url: str, begun: str) -> None:
        """Makes no request and creates nothing. `begun`: as of `LocalStorage`, below the cache."""
        self.address = url.rstrip("/")
        self.root = _cache(self.address)
        self.begun = self.root / begun
        self.bucket = Bucket(self.address)
        self._leases = Leases(self.bucket)
        self._seen: dict[str, str] = {}  # finished artifacts, and their tokens
        self._listing: Listing | None = None
        self._listings = 0  # blocks of `listing` that run

    def exists(self) -> bool:
        """False where nothing has a name that begins so."""
        return bool(self.bucket.folders(""))

    @contextmanager
    def marker(self) -> Iterator[str]:
        """An object, as long as the block runs. Raises WorkspaceError where it cannot be written."""
        marker = f".marks/{uuid.uuid4().hex}"
        self.bucket.write(marker, b"")
        try:
            self.bucket.find(".marks")
            yield marker
        finally:
            self.bucket.remove([marker])

    def sees(self, marker: str) -> bool:
        """True where the object is there."""
        return self.bucket.facts(marker) is not None

    def artifact(self, name: str) -> RemoteArtifact:
        """The artifact in this folder, finished or not."""
        return RemoteArtifact(path=self.root / name, begun=self.begun, storage=self, name=name)

    def folders(self, name: str) -> list[str]:
        """Names of the folders in this one, sorted."""
        if self._listings and self._listing is not None and name.partition("/")[0] in TOPS:
            return self._listing.folders(name)
        found = Listing(self.bucket.find(name))  # it says what is finished, too
        self._seen.update(found.finished())
        return found.folders(name)

    @contextmanager
    def listing(self) -> Iterator[None]:
        """While the block runs, what is finished is answered from one cached listing of the bucket."""
        if self._listing is None or self._listing.age > LISTING_SECONDS:
            found: dict[str, Facts] = {}
            for top in TOPS:
                found.update(self.bucket.find(top))
            self._listing = Listing(found)
        self._listings += 1
        try:
            yield
        finally:
            self._listings -= 1

    def invalidate(self) -> None:
        """The next listing is taken anew."""
        self._listing = None

    def token(self, name: str) -> str | None:
        """Of an artifact's manifest; None if the artifact is not finished."""
        if self._listings and self._listing is not None:
            return self._listing.token(name)
        if name not in self._seen and (facts := self.bucket.facts(f"{name}/{MANIFEST}")):
            self._seen[name] = facts.token
        return self._seen.get(name)

    def files(self, name: str) -> dict[str, Facts]:
        """The objects of an artifact's folder, by their names in it."""
        if self._listings and self._listing is not None:
            return self._listing.files(name)
        return Listing(self.bucket.find(name)).files(name)

    def fetch(self, artifacts: Iterable[Artifact], concerned: Callable[[str], bool]) -> None:
        """Bring files of finished artifacts to this machine, manifests first; what is here already stays."""
        wanted = [artifact for artifact in artifacts if isinstance(artifact, RemoteArtifact)]
        self._fetch_manifests(wanted)
        small: list[tuple[RemoteArtifact, str, dict[str, Any]]] = []
        for artifact in wanted:
            with suppress(ArtifactError):  # its manifest is damaged, or gone: found when it is read
                for name, facts in artifact.lacks(concerned):
                    if facts["bytes"] < SMALL:
                        small.append((artifact, name, facts))
                    else:
                        self._fetch_large(artifact, name, facts)
        for begin in range(0, len(small), AT_ONCE):
            some = {
                f"{artifact.name}/{name}": (artifact, name, facts)
                for artifact, name, facts in small[begin : begin + AT_ONCE]
            }
            for full, content in self.bucket.read(list(some)).items():
                artifact, name, facts = some[full]
                artifact.keep(name, content, facts)

    def _fetch_manifests(self, artifacts: Sequence[RemoteArtifact]) -> None:
        tokens = {artifact: self.token(artifact.name) for artifact in artifacts}
        for artifact, token in tokens.items():
            if token is None:
                artifact.forget()
        old = [
            artifact
            for artifact, token in tokens.items()
            if token is not None and not artifact.is_current(token)
        ]
        for begin in range(0, len(old), AT_ONCE):
            some = {f"{artifact.name}/{MANIFEST}": artifact for artifact in old[begin : begin + AT_ONCE]}
            contents = self.bucket.read(list(some))
            for full, artifact in some.items():
                token = tokens[artifact]
                if full in contents and token is not None:
                    artifact.begin_anew(contents[full], token)
                else:  # gone since it was seen
                    self._seen.pop(artifact.name, None)
                    artifact.forget()

    def _fetch_large(self, artifact: RemoteArtifact, name: str, facts: dict[str, Any]) -> None:
        part = artifact.path / f".part-{uuid.uuid4().hex[:8]}"
        try:
            self.bucket.download(f"{artifact.name}/{name}", part)
            artifact.keep_file(name, part, facts)
        except FileNotFoundError:
            pass  # found when it is read
        finally:
            part.unlink(missing_ok=True)

    def upload_artifact(self, name: str, files: dict[str, Path], manifest: bytes) -> str:
        """Upload a finished artifact, manifest last. Its token; empty if another was faster."""
        partial_folder = [f"{name}/{file}" for file in Listing(self.bucket.find(name)).files(name)]
        self.bucket.remove(partial_folder)
        self.bucket.upload({f"{name}/{file}": path for file, path in files.items()})
        first = self.bucket.create(f"{name}/{MANIFEST}", manifest)
        facts = self.bucket.facts(f"{name}/{MANIFEST}")
        if self._listing is not None and facts is not None:
            self._listing.add(f"{name}/{MANIFEST}", facts)
        return facts.token if first and facts is not None else ""

    def remove(self, name: str) -> None:
        """Remove an artifact from the bucket, its manifest first."""
        self.bucket.remove([f"{name}/{MANIFEST}"])
        self.bucket.remove([f"{name}/{file}" for file in Listing(self.bucket.find(name)).files(name)])
        self._seen.pop(name, None)
        if self._listing is not None:
            self._listing.discard(name)

    def fetch_files(self, folder: str) -> Path:
        """The files right in a folder that is no artifact: a copy to read, and to add to."""
        here = self.root / ".read" / folder
        names = [name for name in Listing(self.bucket.find(folder)).files(folder) if _is_plain(name)]
        for old in here.glob("*"):
            if old.is_file() and old.name not in names:
                old.unlink(missing_ok=True)
        for full, content in self.bucket.read([f"{folder}/{name}" for name in names]).items():
            write_whole(here / full.rpartition("/")[2], content)
        return here

    def upload(self, folder: str, here: Path, files: Sequence[str], *, alone: bool = False) -> None:
        """Bring files of the folder `here` into one that is no artifact; the last says that all are there."""
        *others, last = files
        there = Listing(self.bucket.find(folder)).files(folder) if alone or others else {}
        gone = [name for name in there if name == last or (alone and name not in files)]
        self.bucket.remove([f"{folder}/{name}" for name in gone])
        self.bucket.upload({f"{folder}/{name}": here / name for name in others})
        self.bucket.upload({f"{folder}/{last}": here / last})

    def lock(self, lock: str) -> AbstractContextManager[None]:
        """Hold a lock; waits while another process holds it."""
        return self._leases.lock(lock)

    def lock_if_free(self, lock: str) -> AbstractContextManager[bool]:
        """Yields True with the lock held, False while another process holds it."""
        return self._leases.lock_if_free(lock)

    def locked(self, lock: str) -> bool:
        """True while a process holds it. Creates nothing."""
        return self._leases.locked(lock)


def _cache(url: str) -> Path:
    """The folder of this machine for one workspace."""
    given = os.environ.get("HARNESS_CACHE")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    digest = hashlib.sha256(f"{endpoint} {url}".encode()).hexdigest()[:8]
    folder = Path(given) if given else caches / "lora-sweep-harness"
    return folder.expanduser().resolve() / f"{re.sub(r'[^A-Za-z0-9.]+', '-', url)}-{digest}"


def _is_plain(name: str) -> bool:
    return "/" not in name and not name.startswith(".")
