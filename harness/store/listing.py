"""What a bucket holds, from one listing: which artifacts are finished, and the files of each."""

import time
from collections import defaultdict
from collections.abc import Mapping

from harness.store.artifact import MANIFEST, is_inside
from harness.store.objects import Facts


class Listing:
    """The objects of a bucket at one moment, with what this process has changed since."""

    def __init__(self, found: Mapping[str, Facts]) -> None:
        self._taken_at = time.monotonic()
        self._names: dict[str, dict[str, Facts]] = defaultdict(dict)  # by folder: what is right in it
        self._below: dict[str, set[str]] = defaultdict(set)  # folders by the folder that they are in
        for name, facts in found.items():
            self.add(name, facts)

    @property
    def age(self) -> float:
        """Seconds since."""
        return time.monotonic() - self._taken_at

    def add(self, name: str, facts: Facts) -> None:
        """An object. One whose name would lead out of the folder on this machine is left out."""
        if not is_inside(name):
            return
        folder, _, file = name.rpartition("/")
        self._names[folder][file] = facts
        while folder:
            parent, _, own = folder.rpartition("/")
            if own in self._below[parent]:
                return
            self._below[parent].add(own)
            folder = parent

    def discard(self, folder: str) -> None:
        """A folder with all that is in it."""
        parent, _, own = folder.rpartition("/")
        self._below[parent].discard(own)
        for below in [*self._below.pop(folder, ())]:
            self.discard(f"{folder}/{below}")
        self._names.pop(folder, None)

    def folders(self, name: str) -> list[str]:
        """Names of the folders in one, sorted."""
        return sorted(self._below.get(name, ()))

    def files(self, name: str) -> dict[str, Facts]:
        """All objects below a folder, by their names in it."""
        found = dict(self._names.get(name, {}))
        for below in self.folders(name):
            found |= {f"{below}/{file}": facts for file, facts in self.files(f"{name}/{below}").items()}
        return found

    def token(self, name: str) -> str | None:
        """Of an artifact's manifest; None if the artifact is not finished."""
        facts = self._names.get(name, {}).get(MANIFEST)
        return None if facts is None else facts.token

    def finished(self) -> dict[str, str]:
        """The finished artifacts, and their tokens."""
        return {name: files[MANIFEST].token for name, files in self._names.items() if MANIFEST in files}
