"""In what two arms differ: whether a contrast compares like with like, and whether a sham is one."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any


def deviations(
    left: Mapping[str, Any], right: Mapping[str, Any], *, ignoring: Collection[str] = ()
) -> tuple[tuple[str, Any, Any], ...]:
    """(dotted key, value left, value right) of each setting that differs, sorted by key.

    Settings may be nested mappings and sequences. A key in `ignoring` is left out with all below it; a
    setting that one side lacks counts as None there. An arm and a control may differ in `adapters` alone; a
    sham and the adapter that it is a sham of in the kind and the words of the recipe alone.
    """
    ours, theirs = dict(_leaves(left, "")), dict(_leaves(right, ""))

    def ignored(key: str) -> bool:
        return any(key == name or key.startswith(name + ".") for name in ignoring)

    return tuple(
        (key, ours.get(key), theirs.get(key))
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) and not ignored(key)
    )


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items = [(str(name), below) for name, below in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(str(place), below) for place, below in enumerate(value)]
    else:
        yield key, value
        return
    for name, below in items:
        yield from _leaves(below, f"{key}.{name}" if key else name)
