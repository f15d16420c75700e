"""What a case is, how cases are counted, and how inputs are damaged."""

import copy
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from harness.errors import HarnessError

SECONDS = 10  # that reading one input may take
LONGEST = 300  # letters of a refusal, beside the path of the file that it names

Case = tuple[str, Callable[[], object]]  # what was done to the input; reads it, AssertionError: wrongly taken
Cases = Iterable[Case]


class Hang(BaseException):
    """A case took too long. No `except Exception` of what it reads catches it."""


@dataclass
class Tally:
    """How many cases were taken and refused, and what went wrong."""

    cases: int = 0
    taken: int = 0
    refused: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


def run(cases: Cases, *, path: str) -> Tally:
    """Read each case. `path` is the folder of the inputs, which does not count in a refusal's length."""
    tally = Tally()
    for number, (done, read) in enumerate(cases):
        started, tally.cases = time.monotonic(), number + 1
        try:
            with _limit():
                read()
            tally.taken += 1
        except HarnessError as error:
            tally.refused += 1
            if why := _badly_said(str(error), path):
                tally.faults.append(f"{number}, {done}: {why}: {str(error)[:1000]!r}")
        except (Exception, Hang) as error:
            where = "".join(traceback.format_exception(error)[-4:])
            tally.faults.append(f"{number}, {done}: {type(error).__name__}: {str(error)[:300]}\n{where}")
        tally.slowest = max(tally.slowest, time.monotonic() - started)
    return tally


@contextmanager
def _limit() -> Iterator[None]:
    """Raise Hang in the block when its time is up: on POSIX alone, and between two steps of Python."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _badly_said(error: str, path: str) -> str | None:
    for line in error.replace(path, "").split("\n"):
        if not line.strip():
            return "a refusal has an empty line"
        if len(line) >= LONGEST:
            return f"a refusal has {len(line)} letters"
        if not line.isprintable():
            return "a refusal has control characters"
    return None


JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 64, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.0, -0.0, 0.5, 1.5,
    -1e-9, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), "", " ", "8", "1e3", "nan", "true",
    "x" * 10_000, "é" * 50, "e\u0301", "\x00", "a\nb", "\x1b[31m", "\u202egnp", "\u2028", "\ufeff", "$x$",
    "[/x]", "<script>", "{prompt}", "{{", "%s", "..", "../..", "/etc/passwd", "/dev/zero", "~none/x",
    "con.png", "(x:1.3)", "[x]", "((x", "(x)1.2", "BREAK", "<lora:x:1>", "('a', 'b').and()",
    "('a', 'b').swap()", [], [[]], [None], [0, 0], [1, 2, 3], ["a", "a"], {}, {"": 1}, {"kind": None},
    {"kind": "x"}, {"kind": ["x"]}, {"min": 1, "max": 0}, {"when": {}, "values": []},
    {"a": {"b": {"c": []}}},
)  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of a JSON-like tree but the tree itself."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(tree: Any, path: Iterable[Any]) -> Any:
    """The value at a path."""
    for step in path:
        tree = tree[step]
    return tree


def mutated(tree: Any, dice: random.Random, *, junk: tuple[Any, ...] = JUNK) -> tuple[str, Any]:
    """A copy of a JSON-like tree with one thing changed, and what it was."""
    tree = copy.deepcopy(tree)
    *heads, last = path = dice.choice(list(places(tree)))
    parent, name = at(tree, heads), ".".join(map(str, path))
    match dice.choice(
        ("replace", "replace", "replace", "remove", "misspell", "take", "swap", "repeat", "scale")
    ):
        case "remove":
            del parent[last]
            return f"{name} removed", tree
        case "misspell" if isinstance(parent, dict):
            letters = list(str(last))
            letters.insert(dice.randrange(len(letters) + 1), dice.choice("xs_. \n$é"))
            parent["".join(letters)] = parent.pop(last)
            return f"{name} misspelt", tree
        case "take":
            parent[last] = copy.deepcopy(at(tree, dice.choice(list(places(tree)))))
            return f"{name} = {parent[last]!r:.60}, another's value", tree
        case "swap":
            *other_heads, other = dice.choice(list(places(tree)))
            others = at(tree, other_heads)
            parent[last], others[other] = copy.deepcopy(others[other]), copy.deepcopy(parent[last])
            return f"{name} swapped with {other}", tree
        case "repeat" if isinstance(parent, list):
            parent[last:last] = [copy.deepcopy(parent[last])] * dice.choice((1, 2, 300))
            return f"{name} repeated", tree
        case "scale" if isinstance(parent[last], int | float) and not isinstance(parent[last], bool):
            parent[last] *= dice.choice((-1, 0.5, 2, 10, 1e3, 1e9, 1e300))
            return f"{name} = {parent[last]!r}", tree
    value = copy.deepcopy(dice.choice(junk))
    parent[last] = value
    return f"{name} = {value!r:.60}", tree


def damaged(content: bytes, dice: random.Random) -> tuple[str, bytes]:
    """Bytes with one bit flipped, a part cut, doubled, zeroed or exchanged, and what it was."""
    if not content:
        return "nothing to damage", content
    place = dice.randrange(len(content))
    length = min(dice.choice((1, 2, 8, 64, 4096)), len(content) - place)
    before, part, after = content[:place], content[place : place + length], content[place + length :]
    match dice.choice(("flip", "flip", "flip", "cut", "end", "double", "zero", "noise", "insert")):
        case "flip":
            flipped = bytearray(content)
            flipped[place] ^= 1 << dice.randrange(8)
            return f"a bit of byte {place} flipped", bytes(flipped)
        case "cut":
            return f"{length} bytes at {place} cut", before + after
        case "end":
            return f"ends at byte {place}", before
        case "double":
            return f"{length} bytes at {place} doubled", before + part + part + after
        case "zero":
            return f"{length} bytes at {place} zeroed", before + bytes(length) + after
        case "noise":
            return f"{length} random bytes at {place}", before + dice.randbytes(length) + after
    return f"{length} random bytes inserted at {place}", before + dice.randbytes(length) + part + after
