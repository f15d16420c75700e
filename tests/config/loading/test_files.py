from pathlib import Path
from typing import Any

import pytest

from harness.config.loading.files import parse, read_yaml
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
        ("a: !!python/object:os.system {}\n", "x.yaml:1: could not determine a constructor"),
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
