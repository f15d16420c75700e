"""Make again what this folder and the README show of the quickstart, from a finished run of it.

    python -m reports.make runs/sweeps/quickstart

The page, pictures of it in Chromium (wide, narrow, dark, its grid), the terminal's last lines, and the
executed notebook of experiments/001_quickstart. Needs the test extras and Chromium.
"""

import argparse
import os
import pty
import subprocess
import sys
import tempfile
from base64 import b64decode
from io import StringIO
from pathlib import Path

import jupytext
import nbclient
import nbformat
from rich.console import Console
from rich.text import Text

from harness import results
from harness.reporting.report import write_report
from harness.store.workspace import Workspace
from tests.reporting.report.browser import Page, chromium

HERE = Path(__file__).parent
NOTEBOOK = HERE.parent / "experiments" / "001_quickstart" / "analysis.py"
TERMINAL_WIDTH = 100
VIEWS = {  # name: width, height, dark, the element at the top
    "desktop": (1280, 900, False, None),
    "narrow": (375, 812, False, None),
    "dark": (1280, 900, True, None),
    "grid": (1280, 1000, False, "grid"),
}


def pictures(page: Page, html: Path) -> None:
    """What a reader sees of the page, as WebP."""
    for name, (width, height, dark, anchor) in VIEWS.items():
        page.open(html, width=width, height=height, dark=dark)
        if anchor is not None:
            page.evaluate(f"document.getElementById({anchor!r}).scrollIntoView()")
        page.settle()
        shot = page.call("Page.captureScreenshot", format="webp", quality=80)
        (HERE / f"quickstart-{name}.webp").write_bytes(b64decode(shot["data"]))


def terminal(folder: Path) -> None:
    """The end of `harness run` in a terminal, as SVG. The sweep is finished, so nothing is made."""
    sweep = HERE.parent / "sweeps" / "quickstart.yaml"
    command = [sys.executable, "-c", "from harness.cli.main import main; main()", "run", str(sweep)]
    shown = in_a_terminal([*command, "--workspace", str(folder.parent.parent)])
    console = Console(record=True, width=TERMINAL_WIDTH, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown.replace(str(folder.parent.parent), "runs")))
    title = "harness run sweeps/quickstart.yaml --workspace runs"
    (HERE / "quickstart-terminal.svg").write_text(console.export_svg(title=title), encoding="utf-8")


def in_a_terminal(command: list[str]) -> str:
    """What a command prints where its output is a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(TERMINAL_WIDTH), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment, cwd=HERE.parent
    )
    os.close(theirs)
    found = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux's sign that the other end was closed
            break
        if not part:
            break
        found += part
    os.close(ours)
    assert process.wait() == 0
    return found.decode().replace("\r\n", "\n")


def notebook(folder: Path) -> None:
    """The experiment's notebook with its outputs."""
    os.environ["SWEEP"] = str(folder)
    os.environ["PYTHONPATH"] = str(HERE.parent)
    book = jupytext.read(NOTEBOOK)
    ran = nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute(cwd=str(NOTEBOOK.parent))
    nbformat.write(ran, NOTEBOOK.with_suffix(".ipynb"))


def main() -> None:
    """Everything, from one folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="WORKSPACE/sweeps/quickstart")
    given = parser.parse_args().folder  # the page shows it as given
    folder, html = given.resolve(), HERE / "quickstart.html"
    write_report(results.load(given), Workspace(given.parent.parent), html)
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
        pictures(page, html)
    terminal(folder)
    notebook(folder)


if __name__ == "__main__":
    main()
