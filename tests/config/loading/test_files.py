import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness.config.loading.files import one_line, parse, read_text, read_yaml
from harness.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-3", 1e-3),
        ("-.5", -0.5),
        ("8", 8),
        ("010", 10),
        ("0x10", 16),
        ("12:30", "12:30"),
        ("no", "no"),
        ("on", "on"),
        ("True", True),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("version 1.2", "version 1.2"),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    parsed = parse(text, source="x")
    assert parsed == value
    assert type(parsed) is type(value)


def test_anchors_and_merge_keys() -> None:
    text = "a: &a {rank: 8, alpha: 1}\nb: {<<: *a, alpha: 2}"
    assert parse(text, source="x")["b"] == {"rank": 8, "alpha": 2}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a:\n  rank: 1\n  rank: 2\n", "x.yaml:3: key 'rank' is given twice"),
        ("a: [1, 2\nb: 3\n", "x.yaml:2: "),
        ("a:\n\t- 1\n", "x.yaml:2: found character '\\t' that cannot start any token"),
        ("a: *nothing\n", "x.yaml:1: found undefined alias 'nothing'"),
        ("? [1, 2]\n: 3\n", "x.yaml:1: a key must be plain text"),
        ("a: !!python/object:os.system {}\n", "x.yaml:1: tags are not used here"),
    ],
)
def test_fault_names_file_and_line(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{tmp_path}/{error}")
    assert "\n" not in str(caught.value)


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_yaml(path)
    path.write_text("a: \x07")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(path)


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(  # each is nine of the one before
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: !!int abc", "tags are not used here"),
        ("name: !!python/object/apply:os.system [id]", "tags are not used here"),
        ("name: !local x", "tags are not used here"),
        ("1: x", "a key must be plain text"),
        ("null: x", "a key must be plain text"),
        ("[a]: x", "a key must be plain text"),
        (f"name: {'9' * 5000}", "is too long a number"),
        ("[" * 400, "nested more than 40 deep"),
        ("{a: " * 50_000, "nested more than 40 deep"),
        ("- " * 400 + "x", "nested more than 40 deep"),
        ('name: "\\ud800"', "half a surrogate pair"),
        ("name: a\0b", "not valid YAML"),
        ("a: &a [*a]", "stands for what it is in"),
        ("a: *b", "undefined alias"),
        ("a: " + "x" * 2**22, "more than 2 MiB"),
        ("[" + "x, " * 120_000 + "]", "more than 100,000 values"),
        (ALIASES, "more than 100,000 values"),
    ],
)
def test_bombs_and_code_are_one_line(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=why) as caught:
        read_yaml(tmp_path / "x.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_shared_value_is_no_bomb(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("\ufeffa: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}\n", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "latin-1", "large"])
def test_what_is_no_text_is_one_line_at_once(what: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    match what:
        case "pipe":
            os.mkfifo(file)
        case "device":
            file.symlink_to("/dev/zero")
        case "folder":
            file.mkdir()
        case "latin-1":
            file.write_bytes(b"caf\xe9")
        case "large":
            file.write_bytes(b"a" * (2**24 + 1))
    with pytest.raises(ConfigError, match=r"x\.yaml (is not|is larger|cannot)"):
        read_text(file)


def test_messages_show_every_character() -> None:
    assert one_line("a\x1b[31m\nb\u202e") == r"a\x1b[31m b\u202e"
    assert len(one_line("x" * 10_000)) == 160
