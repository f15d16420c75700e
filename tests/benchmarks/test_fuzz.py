"""A few damaged inputs of each kind: all are refused in one line, or are read as what they are."""

import random
from functools import partial
from pathlib import Path

import pytest

from benchmarks.fuzz.cases import damaged, mutated, run
from benchmarks.fuzz.kinds import KINDS
from harness.errors import ConfigError

FEW = {"PNG for redraw": 8}


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_of_each_kind(kind: str, tmp_path: Path) -> None:
    make, _ = KINDS[kind]
    count = FEW.get(kind, 30)
    tally = run(make(tmp_path, seed=1, count=count), path=str(tmp_path))
    assert not tally.faults, "\n".join(tally.faults)
    assert tally.taken + tally.refused == tally.cases == count and tally.refused > 0


def test_what_goes_wrong_is_counted() -> None:
    def raising(error: BaseException) -> None:
        raise error

    errors = {
        "a traceback": (KeyError("x"), "KeyError"),
        "taken": (AssertionError("another number"), "another number"),
        "long": (ConfigError("x" * 300), "300 letters"),
        "raw": (ConfigError("a\x1b[31m"), "control characters"),
        "empty": (ConfigError("a\n\nb"), "empty line"),
        "right": (ConfigError("x.yaml: a is not known"), None),
    }
    tally = run([(name, partial(raising, error)) for name, (error, _) in errors.items()], path="folder")
    assert (tally.cases, tally.refused, tally.taken) == (6, 4, 0)
    told = [(name, why) for name, (_, why) in errors.items() if why]
    assert len(tally.faults) == len(told)
    for fault, (name, why) in zip(tally.faults, told, strict=True):
        assert f", {name}: " in fault and why in fault


def test_a_hang_is_cut_off_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> None:
        while True:
            try:
                sum(range(100))
            except Exception:  # as of a reader that catches all
                continue

    monkeypatch.setattr("benchmarks.fuzz.cases.SECONDS", 0.05)
    tally = run([("endless", endless), ("good", lambda: None)], path="folder")
    assert "Hang" in tally.faults[0] and tally.taken == 1


def test_the_same_seed_damages_alike() -> None:
    tree = {"a": [1, {"b": "c"}], "d": {"e": 0.5}}
    for seed in range(50):
        assert repr(mutated(tree, random.Random(seed))) == repr(mutated(tree, random.Random(seed)))
        assert damaged(b"abcdef", random.Random(seed)) == damaged(b"abcdef", random.Random(seed))
    assert tree == {"a": [1, {"b": "c"}], "d": {"e": 0.5}}
