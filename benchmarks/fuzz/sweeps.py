"""Mutated sweeps, and YAML texts.

A sweep is wrongly taken when a key that was misspelt, or a number that is none, is taken; when a value that
it gives is another in what was read; or when a trial has not the values of its axes. A text is wrongly taken
when what was read is no plain data, reads otherwise once written as JSON, or lost a key that was given twice.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fuzz.cases import Cases, damaged, mutated
from harness.config.loading.files import parse, read_yaml
from harness.config.loading.load import load_plan
from harness.config.plan.plan import Plan

SWEEPS = Path(__file__).parents[2] / "sweeps"
SHIPPED = ("quickstart", "emoji_search", "emoji_subject_plus_wrong", "sdxl_wrong", "blog")
PROMPTS = [{"text": "a (red)++ fox", "split": "dev", "tags": ["animal"]}, {"text": "an owl", "split": "test"}]
MORE: dict[str, Any] = {  # what no shipped sweep has
    "axes": {
        "adapter.rank": [2, 8],
        "training.learning_rate": {"min": 1.0e-5, "max": 1.0e-3, "scale": "log", "points": 3},
        "training.prompt": {"values": ["wrong", "[v] wrong"], "when": {"adapter.rank": [2]}},
    },
    "arms": [
        {"name": "placebo", "negative": "wrong"},
        {
            "name": "wrong_lora",
            "negative": "wrong",
            "adapters": [{"scale": 1.0}],
            "guider": {"kind": "apg", "momentum": -0.5},
            "axes": {"guidance": [2.0, 4.0], "adapters.0.scale": [0.5, 1.0]},
        },
    ],
    "prompts": PROMPTS,
    "compute": {"workers": 2, "pack": "off"},
}


def mutated_sweeps(folder: Path, *, seed: int, count: int) -> Cases:
    """Shipped sweeps, and one with what none of them has, with one to three things changed."""
    bases = [_shipped(name) for name in SHIPPED]
    bases.append({**bases[0], **MORE})
    file = folder / "sweep.yaml"
    for number in range(count):
        dice = random.Random(f"sweep {seed} {number}")
        sweep, done = dice.choice(bases), []
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            what, sweep = mutated(sweep, dice)
            done.append(what)
        file.write_text(yaml.safe_dump(sweep, allow_unicode=True, sort_keys=False), encoding="utf-8")

        def read(sweep: Any = sweep, is_misspelt: bool = done[-1].endswith("misspelt")) -> None:
            plan = load_plan(file)
            assert not is_misspelt, "a key that was misspelt is taken"
            _check_held(sweep, plan.sweep.model_dump(mode="json"))
            _check_finite(plan.sweep.model_dump())
            _check_trials(plan)

        yield "; ".join(done), read


def _shipped(name: str) -> dict[str, Any]:
    """A shipped sweep with few prompts of its own, so that they are changed too."""
    sweep: dict[str, Any] = read_yaml(SWEEPS / f"{name}.yaml")
    for recipe in (sweep.get("recipe"), *(sweep.get("axes") or {}).get("recipe", ())):
        if recipe and "path" in recipe:
            recipe["path"] = str(SWEEPS / recipe["path"])
    return {**sweep, "prompts": PROMPTS}


def _check_held(given: Any, held: Any, where: str = "sweep") -> None:
    """What is given in the text is what was read, where it has the same place in both."""
    match given, held:
        case dict(), dict():
            for key in given.keys() & held.keys():
                if (where, key) != ("sweep", "arms"):  # arms with axes are several
                    _check_held(given[key], held[key], f"{where}.{key}")
        case list(), list():
            assert len(given) == len(held), f"{where}: {len(held)} of {len(given)} values"
            for place, (one, other) in enumerate(zip(given, held, strict=True)):
                _check_held(one, other, f"{where}[{place}]")
        case (bool(), other) | (other, bool()):
            assert given is held, f"{where}: {given!r:.60} became {held!r:.60}"
        case int() | float(), int() | float():
            assert given == held, f"{where}: {given!r} became {held!r}"
        case (int() | float(), str()) | (list() | dict(), str() | int() | float()):
            raise AssertionError(f"{where}: {given!r:.60} became {held!r:.60}")
        case str(), str():
            assert held.endswith(given.strip()), f"{where}: {given!r:.60} became {held!r:.60}"


def _check_finite(tree: Any) -> None:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for value in tree:
            _check_finite(value)
    assert not isinstance(tree, float) or math.isfinite(tree), "a number that is none is taken"


def _check_trials(plan: Plan) -> None:
    ids = [trial.trial_id for trial in plan.trials]
    assert ids and len(set(ids)) == len(ids), "trials are none, or alike"
    for trial in plan.trials:
        for name, value in trial.params.items():
            held: Any = trial.config
            for step in name.split("."):
                held = getattr(held, step, None)
            is_plain = isinstance(value, int | float | str) and not isinstance(held, tuple) and "." in name
            assert not is_plain or held == value, f"trial has {held!r} for {name}: {value!r}"


TOKENS = (
    "&a ", "*a", "&a [*a]", "!!python/object/apply:os.system [x]", "!x ", "? ", ": ", "- ", "<<: ",
    "<<: *a", "{", "}", "[", "]", "[" * 100, "{a: " * 100, "- " * 100, "|", ">-\n", "'", '"', "#",
    "%YAML 1.1\n---\n", "---\n", "...\n", "\t", "\r", "\n", "\x00", "\x85", "\u2028", "\ufeff", "\ufffe",
    "\x7f", "\\", "0x1F", "0o17", "1_000", "12:30", "1e400", "-.inf", ".nan", "9" * 60, "~", "null",
    "yes", "2001-01-01", "=", "@", "`", "\\ud800", '"\\ud800"', '"\\x41"', "é", "😀", "x" * 1000,
)  # fmt: skip


def yaml_texts(folder: Path, *, seed: int, count: int) -> Cases:
    """Shipped sweeps' texts and random JSON, with marks of YAML put in, bytes damaged or lines doubled."""
    texts = [
        path.read_text(encoding="utf-8")
        for path in sorted(SWEEPS.rglob("*.yaml"))
        if "clusters" not in path.parts
    ]
    file = folder / "text.yaml"
    for number in range(count):
        dice = random.Random(f"text {seed} {number}")
        value = _random_value(dice, 4)
        text = json.dumps(value, ensure_ascii=dice.random() < 0.5)
        expected: tuple[Any, ...] = (value,)
        if dice.random() < 0.6:
            text, expected = dice.choice(texts), ()
        doubled = False
        match dice.choice(("token", "token", "tokens", "bytes", "line", "none")):
            case "token" | "tokens" as many:
                for _ in range(1 if many == "token" else 5):
                    place = dice.randrange(len(text) + 1)
                    text = text[:place] + dice.choice(TOKENS) + text[place:]
                done, expected, content = "marks put in", (), text.encode()
            case "bytes":
                done, content = damaged(text.encode(), dice)
                expected = ()
            case "line" if not expected:
                lines = text.split("\n")
                tops = [line for line in lines if line[:1].isalpha() and ": " in line]
                doubled, line = bool(tops), dice.choice(tops or lines)
                done, content = f"doubled: {line!r:.60}", "\n".join([*lines, line, ""]).encode()
            case _:
                done, content = "as it is", text.encode()
        file.write_bytes(content)

        def read(expected: tuple[Any, ...] = expected, doubled: bool = doubled) -> None:
            found = read_yaml(file)
            assert not doubled, "a key that was given twice is taken"
            assert not expected or found == expected[0], f"{expected[0]!r:.200} became {found!r:.200}"
            _check_plain(found)
            if not _has_odd_number(found):
                again = parse(json.dumps(found, ensure_ascii=False), source="again")
                assert again == found, f"{found!r:.200} written as JSON is read as {again!r:.200}"

        yield done, read


def _random_value(dice: random.Random, depth: int) -> Any:
    match dice.choice(("list", "map", "map", "plain")) if depth else "plain":
        case "list":
            return [_random_value(dice, depth - 1) for _ in range(dice.randrange(4))]
        case "map":
            return {_word(dice): _random_value(dice, depth - 1) for _ in range(dice.randrange(4))}
    return dice.choice(
        (None, True, False, dice.randrange(-9, 10**9), round(dice.uniform(-1, 1), 5), _word(dice))
    )


def _word(dice: random.Random) -> str:
    letters = "abé\u202e😀 :#-?!&*%@`'\"\\\t\n{}[],~0123456789.eE+yesnoNULLtrue"
    return "".join(dice.choice(letters) for _ in range(dice.randrange(1, 12)))


def _check_plain(found: Any) -> None:
    assert found is None or type(found) in (bool, int, float, str, list, dict), type(found)
    if isinstance(found, dict):
        assert all(type(key) is str for key in found)
        found = list(found.values())
    if isinstance(found, list):
        for value in found:
            _check_plain(value)


def _has_odd_number(found: Any) -> bool:
    """NaN and infinity, which JSON has not; the schema refuses them."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        return any(map(_has_odd_number, found))
    return isinstance(found, float) and not math.isfinite(found)
