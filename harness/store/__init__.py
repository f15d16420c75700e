"""The store: content-addressed artifacts in a folder (local or mounted) or behind a URL."""

from pathlib import Path

from harness.store.backend import Storage

__all__ = ["Storage", "open_storage"]


def open_storage(address: Path | str, begun: str) -> Storage:
    """The storage at an address: a folder, or a URL. Opening it reads and writes nothing.

    `begun` is the folder below its root on this machine in which artifacts are built.
    """
    protocol, found, rest = str(address).partition("://")
    if found and protocol != "file":
        from harness.store.remote import RemoteStorage

        return RemoteStorage(str(address), begun)
    from harness.store.local import LocalStorage

    return LocalStorage(Path(rest if found else address), begun)
