"""What a card or a file's header may say of a sweep: nothing that tells where on this machine things lie."""

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

WORDS = frozenset({"keywords", "prompt", "prompts", "text"})  # people's words, which may begin with a slash
PREFIX = "local-dir:"  # open_clip's mark of a folder


def portable(value: Any, *, name: str = "") -> Any:
    """JSON with every absolute path cut down to its last part. `name` is the key the value stands under."""
    match value:
        case dict():
            return {key: portable(inner, name=key) for key, inner in value.items()}
        case list() | tuple():
            return [portable(inner, name=name) for inner in value]
        case str() if name not in WORDS:
            return _last_part(value)
        case _:
            return value


def _last_part(text: str) -> str:
    path = text.removeprefix(PREFIX)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(path).is_absolute():
            return kind(path).name or path
    return text


def is_local(source: str) -> bool:
    """True for a folder of this machine, false for a hub id."""
    return _last_part(source) != source
