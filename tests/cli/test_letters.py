"""What a user wrote is printed letter for letter, on any terminal and in any encoding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.config.example import changed

PRINT = "import sys; from harness.cli.console import out; out.print(sys.argv[1])"
MAIN = "from harness.cli.main import main; main()"
ODD = "Do [r2] and [/r8] :smile: \x1b[31m differ? <b>ü</b> $x$"


def check(tmp_path: Path, *overrides: str, **environment: str) -> str:
    file = tmp_path / "x.yaml"
    sweep = changed(model={"kind": "emoji"})
    file.write_text(yaml.safe_dump(sweep))
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "check", str(file), "-w", str(tmp_path / "w[a]")]
        + [word for override in overrides for word in ("--set", override)],
        capture_output=True,
        env={**os.environ, "NO_COLOR": "1", **environment},
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_a_question_is_no_markup(encoding: str, tmp_path: Path) -> None:
    said = check(tmp_path, f"question={json.dumps(ODD)}", PYTHONIOENCODING=encoding)
    assert r"Do [r2] and [/r8] :smile: \x1b[31m differ? <b>" in said and "</b> $x$" in said
    assert "\x1b" not in said
    assert "2 datasets" in said or "1 datasets" in said, "to the end"


def test_axis_values_can_be_told_apart(tmp_path: Path) -> None:
    said = check(tmp_path, "axes={training.prompt: ['[v] wrong', '[sks] wrong', 'wrong[/i]']}")
    for value in ("[v] wrong", "[sks] wrong", "wrong[/i]"):
        assert f" {value}" in said


def test_an_error_is_told_letter_for_letter(tmp_path: Path) -> None:
    said = check(tmp_path, "adapter.kind='[/x] [bold]'")
    assert "error: " in said and "[/x] [bold]" in said


def test_a_path_stands_on_one_line_of_a_log(tmp_path: Path) -> None:
    from harness.cli.console import Letters

    path = str(tmp_path / ("on-the-big-disk-" * 12) / "report.html")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from harness.cli.console import out; out.print(sys.argv[1])",
            path,
        ],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    )
    assert done.stdout == f"{path}\n"
    assert Letters().render_str("[bold]a[/]").plain == "[bold]a[/]"
