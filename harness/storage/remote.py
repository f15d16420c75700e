"""A workspace behind a URL, and the folder of this machine where its files are worked with."""

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.errors import StageError
from harness.stage import MANIFEST, Stage
from harness.storage.bucket import Bucket, Facts
from harness.storage.lease import Leases
from harness.storage.remote_stage import RemoteStage, write_whole
from harness.storage.storage import Waiting
from harness.storage.survey import Survey

TOPS = ("datasets", "parts", "latents", "texts", "adapters", "images", "scores")
SMALL = 4 * 2**20  # bytes: such files are read many at once, into memory
AT_ONCE = 256
SURVEY_SECONDS = 60.0  # for so long a look serves again, where nothing was dispatched since


class RemoteStorage:
    """The truth lies in the bucket. What is on this machine was made or fetched here, and can be deleted."""

    def __init__(self, url: str) -> None:
        """Nobody is asked, and nothing made."""
        self.address = url.rstrip("/")
        self.root = _cache(self.address)
        self.bucket = Bucket(self.address)
        self._leases = Leases(self.bucket)
        self._seen: dict[str, str] = {}  # finished stages, and their tokens
        self._survey: Survey | None = None
        self._surveying = 0

    def exists(self) -> bool:
        """False where nothing has a name that begins so."""
        return bool(self.bucket.folders(""))

    @contextmanager
    def mark(self) -> Iterator[str]:
        """An object, as long as the block runs. Raises WorkspaceError where it cannot be written."""
        mark = f".marks/{uuid.uuid4().hex}"
        self.bucket.write(mark, b"")
        try:
            self.bucket.find(".marks")
            yield mark
        finally:
            self.bucket.remove([mark])

    def sees(self, mark: str) -> bool:
        """True where the object is there."""
        return self.bucket.facts(mark) is not None

    def stage(self, name: str) -> RemoteStage:
        """The stage in this folder, finished or not."""
        return RemoteStage(path=self.root / name, storage=self, name=name)

    def folders(self, name: str) -> list[str]:
        """Names of the folders in this one, sorted."""
        if self._surveying and self._survey is not None and name.partition("/")[0] in TOPS:
            return self._survey.folders(name)
        look = Survey(self.bucket.find(name))  # one listing says what is finished, too
        self._seen.update(look.finished())
        return look.folders(name)

    @contextmanager
    def survey(self) -> Iterator[None]:
        """While the block runs, what is finished is answered from one look at all there is."""
        if self._survey is None or self._survey.age > SURVEY_SECONDS:
            found: dict[str, Facts] = {}
            for top in TOPS:
                found.update(self.bucket.find(top))
            self._survey = Survey(found)
        self._surveying += 1
        try:
            yield
        finally:
            self._surveying -= 1

    def look_again(self) -> None:
        """The next survey takes a new look."""
        self._survey = None

    def token(self, name: str) -> str | None:
        """Of a stage's manifest; null where the stage is not finished."""
        if self._surveying and self._survey is not None:
            return self._survey.token(name)
        if name not in self._seen and (facts := self.bucket.facts(f"{name}/{MANIFEST}")):
            self._seen[name] = facts.token
        return self._seen.get(name)

    def files(self, name: str) -> dict[str, Facts]:
        """The objects of a stage's folder, by their names in it."""
        if self._surveying and self._survey is not None:
            return self._survey.files(name)
        return Survey(self.bucket.find(name)).files(name)

    def fetch(self, stages: Iterable[Stage], concerned: Callable[[str], bool]) -> None:
        """Bring files of finished stages to this machine, manifests first; what is here already stays."""
        wanted = [stage for stage in stages if isinstance(stage, RemoteStage)]
        self._fetch_manifests(wanted)
        small: list[tuple[RemoteStage, str, dict[str, Any]]] = []
        for stage in wanted:
            with suppress(StageError):  # its manifest is damaged, or gone: found when it is read
                for name, facts in stage.lacks(concerned):
                    if facts["bytes"] < SMALL:
                        small.append((stage, name, facts))
                    else:
                        self._fetch_large(stage, name, facts)
        for begin in range(0, len(small), AT_ONCE):
            some = {
                f"{stage.name}/{name}": (stage, name, facts)
                for stage, name, facts in small[begin : begin + AT_ONCE]
            }
            for full, content in self.bucket.read(list(some)).items():
                stage, name, facts = some[full]
                stage.keep(name, content, facts)

    def _fetch_manifests(self, stages: Sequence[RemoteStage]) -> None:
        tokens = {stage: self.token(stage.name) for stage in stages}
        for stage, token in tokens.items():
            if token is None:
                stage.forget()
        old = [stage for stage, token in tokens.items() if token is not None and not stage.is_current(token)]
        for begin in range(0, len(old), AT_ONCE):
            some = {f"{stage.name}/{MANIFEST}": stage for stage in old[begin : begin + AT_ONCE]}
            contents = self.bucket.read(list(some))
            for full, stage in some.items():
                token = tokens[stage]
                if full in contents and token is not None:
                    stage.begin_anew(contents[full], token)
                else:  # gone since it was seen
                    self._seen.pop(stage.name, None)
                    stage.forget()

    def _fetch_large(self, stage: RemoteStage, name: str, facts: dict[str, Any]) -> None:
        part = stage.path / f".part-{uuid.uuid4().hex[:8]}"
        try:
            self.bucket.download(f"{stage.name}/{name}", part)
            stage.keep_file(name, part, facts)
        except FileNotFoundError:
            pass  # found when it is read
        finally:
            part.unlink(missing_ok=True)

    def put_stage(self, name: str, files: dict[str, Path], manifest: bytes) -> str:
        """Upload a finished stage, manifest last. Its token; empty where another was as fast."""
        left_over = [f"{name}/{file}" for file in Survey(self.bucket.find(name)).files(name)]
        self.bucket.remove(left_over)
        self.bucket.upload({f"{name}/{file}": path for file, path in files.items()})
        first = self.bucket.create(f"{name}/{MANIFEST}", manifest)
        facts = self.bucket.facts(f"{name}/{MANIFEST}")
        if self._survey is not None and facts is not None:
            self._survey.add(f"{name}/{MANIFEST}", facts)
        return facts.token if first and facts is not None else ""

    def take_away(self, name: str) -> None:
        """Remove a stage from the bucket, its manifest first."""
        self.bucket.remove([f"{name}/{MANIFEST}"])
        self.bucket.remove([f"{name}/{file}" for file in Survey(self.bucket.find(name)).files(name)])
        self._seen.pop(name, None)
        if self._survey is not None:
            self._survey.discard(name)

    def fetch_files(self, folder: str) -> Path:
        """A folder that is no stage, the files right in it as they are now: a copy to read, and to add to."""
        here = self.root / ".read" / folder
        names = [name for name in Survey(self.bucket.find(folder)).files(folder) if _is_plain(name)]
        for old in here.glob("*"):
            if old.is_file() and old.name not in names:
                old.unlink(missing_ok=True)
        for full, content in self.bucket.read([f"{folder}/{name}" for name in names]).items():
            write_whole(here / full.rpartition("/")[2], content)
        return here

    def upload(self, folder: str, here: Path, files: Sequence[str], *, alone: bool = False) -> None:
        """Bring files of the folder `here` into one that is no stage; the last says that all are there."""
        *others, last = files
        there = Survey(self.bucket.find(folder)).files(folder) if alone or others else {}
        gone = [name for name in there if name == last or (alone and name not in files)]
        self.bucket.remove([f"{folder}/{name}" for name in gone])
        self.bucket.upload({f"{folder}/{name}": here / name for name in others})
        self.bucket.upload({f"{folder}/{last}": here / last})

    @contextmanager
    def hold(self, lock: str, waiting: Waiting) -> Iterator[None]:
        """Be the only one who holds it; another's end is waited for within `waiting`."""
        with self._leases.hold(lock, waiting):
            self._seen.clear()  # what was seen before may have been made anew since
            yield

    def hold_if_free(self, lock: str, *, at_once: bool = False) -> AbstractContextManager[bool]:
        """Hold it, and say so; or say False while another does: `at_once`, whether that one lives or not."""
        return self._leases.hold_if_free(lock, at_once=at_once)

    def held(self, lock: str) -> bool:
        """True while somebody holds it. Makes nothing."""
        return self._leases.held(lock)

    def clear_locks(self, folder: str) -> None:
        """Remove the leases that were let go of."""
        self._leases.clear(folder)


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
