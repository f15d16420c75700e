"""Objects below a URL, through fsspec: `s3://`, and its other file systems.

Credentials and endpoint are those of the file system: for S3 botocore's environment
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL …) and its files.
"""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from harness.errors import WorkspaceError

PATIENCE_SECONDS = 120.0  # trouble that may pass is waited out for so long,
FIRST_PATIENCE_SECONDS = 30.0  # and so long before the first answer: the address may be wrong
S3 = {
    "use_listings_cache": False,  # others write there too
    "skip_instance_cache": True,  # `_open` has one, which knows the environment
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 3},
        "connect_timeout": 10,
        "read_timeout": 60,
    },
}
EXTRAS = {"s3": "s3fs: pip install 'lora-sweep-harness[s3]'"}
CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
NOT_FIRST = {"PreconditionFailed", "ConditionalRequestConflict"}  # S3's answers to a conditional write

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of an object. `token` is another one whenever its content is."""

    size: int
    token: str
    changed_at: datetime | None


class Bucket:
    """Objects by their names below the URL. A call that fails is made again while the trouble may pass.

    Raises FileNotFoundError where an object is missing, and WorkspaceError, in one line, for all that its
    user has to mend: credentials, permissions, a bucket or an endpoint that is not there.
    """

    def __init__(self, url: str) -> None:
        """No request before the first call."""
        self.url = url
        self._answered = False

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        given = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        try:
            return _open(self.url, given)
        except ImportError as error:
            protocol = self.url.partition("://")[0]
            raise WorkspaceError(f"--workspace {self.url} needs {EXTRAS.get(protocol, error)}") from None
        except ValueError as error:
            raise WorkspaceError(f"--workspace {self.url}: {error}") from None

    def find(self, folder: str) -> dict[str, Facts]:
        """All objects below a folder, by their names below the URL."""
        fs, root = self._opened
        found = self._call(lambda: fs.find(self._path(folder), detail=True))
        return {name.removeprefix(f"{root}/"): _facts(info) for name, info in found.items()}

    def folders(self, folder: str) -> list[str]:
        """Names of what is right below a folder and has something below it, sorted."""
        fs, _ = self._opened
        try:
            found = self._call(lambda: fs.ls(self._path(folder), detail=True))
        except FileNotFoundError:
            return []
        return sorted(
            info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory"
        )

    def facts(self, name: str) -> Facts | None:
        """Of one object; None if there is none."""
        fs, _ = self._opened
        try:
            return _facts(self._call(lambda: fs.info(self._path(name))))
        except FileNotFoundError:
            return None

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """The content of objects, side by side; those that are missing are left out."""
        fs, _ = self._opened
        found: dict[str, bytes] = {}

        def ask() -> None:
            paths = {self._path(name): name for name in names if name not in found}
            answers = fs.cat(list(paths), on_error="return") if paths else {}
            found.update(
                {paths[path]: answer for path, answer in answers.items() if isinstance(answer, bytes)}
            )
            for answer in answers.values():
                if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                    raise answer

        self._call(ask)
        return found

    def download(self, name: str, file: Path) -> None:
        """One object's content into a file."""
        fs, _ = self._opened
        self._call(lambda: fs.get_file(self._path(name), str(file)))

    def upload(self, files: Mapping[str, Path]) -> None:
        """Files, side by side, as the objects of these names."""
        fs, _ = self._opened
        if files:
            paths = [self._path(name) for name in files]
            self._call(lambda: fs.put([str(file) for file in files.values()], paths))

    def write(self, name: str, content: bytes) -> None:
        """An object, whatever was there."""
        fs, _ = self._opened
        self._call(lambda: fs.pipe_file(self._path(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """An object, if there is none of that name; false where there is.

        True of one writer alone, where the file system has a conditional write (S3's If-None-Match).
        """
        fs, _ = self._opened
        try:
            self._call(lambda: fs.pipe_file(self._path(name), content, mode="create"))
        except FileExistsError:
            # An answer may have been lost, and the call been made again: then it is ours.
            return self.read([name]).get(name) == content
        return True

    def remove(self, names: Sequence[str]) -> None:
        """Objects; those that are missing are no fault."""
        fs, _ = self._opened
        if not names:
            return

        def ask() -> None:
            try:
                fs.rm([self._path(name) for name in names])
            except FileNotFoundError:  # some file systems stop there
                for name in names:
                    if fs.exists(self._path(name)):
                        fs.rm_file(self._path(name))

        self._call(ask)

    def _path(self, name: str) -> str:
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    def _call(self, ask: Callable[[], T]) -> T:
        """Again and again with growing pauses, until there is an answer or the patience ends."""
        began, pause = time.monotonic(), 0.2
        while True:
            try:
                answer = ask()
            except Exception as error:  # each file system has its own
                if _is_answer(error):
                    self._answered = True
                    raise _plain(error) from None
                patience = PATIENCE_SECONDS if self._answered else FIRST_PATIENCE_SECONDS
                left = patience - (time.monotonic() - began)
                if (told := self._told(error)) is not None or left < pause:
                    raise WorkspaceError(f"--workspace {self.url}: {told or _unreachable(error)}") from error
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 10.0)
            else:
                self._answered = True
                return answer

    def _told(self, error: Exception) -> str | None:
        """What its user has to mend; None for trouble that may pass."""
        if type(error).__name__ in CREDENTIALS:
            return (
                f"{str(error).rstrip('.')}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        if _code(error) == "NoSuchBucket":
            return "there is no such bucket; make it, or correct the name"
        if isinstance(error, PermissionError):
            return f"no permission: {_line(error)} List, read, write and delete must be allowed there"
        if isinstance(error, ValueError | TypeError | NotImplementedError) or _code(error) in (
            "InvalidBucketName",
            "IllegalLocationConstraintException",
            "PermanentRedirect",
        ):
            return _line(error)
        return None


@lru_cache(maxsize=8)
def _open(url: str, environment: tuple[tuple[str, str], ...]) -> tuple[Any, str]:
    """The file system, with the connections that it keeps, and the path. Another environment has another."""
    options = S3 if url.startswith(("s3://", "s3a://")) else {}
    fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path.rstrip("/")


def _is_answer(error: Exception) -> bool:
    """True for what is no fault: there is no such object, or there is one already."""
    missing = isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket"
    return missing or isinstance(error, FileExistsError) or _code(error) in NOT_FIRST


def _plain(error: Exception) -> Exception:
    return FileExistsError(str(error)) if _code(error) in NOT_FIRST else error


def _code(error: Exception) -> str:
    """S3's word for it."""
    response = getattr(error.__cause__ or error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _unreachable(error: Exception) -> str:
    return (
        f"no usable answer ({_line(error)}); check the network, the address and, for S3, AWS_ENDPOINT_URL; "
        "what is finished is kept"
    )


def _facts(info: Mapping[str, Any]) -> Facts:
    changed_at = info.get("LastModified") or info.get("mtime") or info.get("created")
    token = info.get("ETag") or info.get("etag") or info.get("md5Hash") or f"{info.get('size')} {changed_at}"
    return Facts(
        size=int(info.get("size") or 0),
        token=str(token),
        changed_at=changed_at if isinstance(changed_at, datetime) else None,
    )
