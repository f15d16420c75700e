"""`harness status` and `harness open`: how far a sweep is, and its page in a browser."""

import json
import webbrowser
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from harness.cli.console import out, styled
from harness.cli.outputs import SweepFolder
from harness.errors import ArtifactError
from harness.results.format import count, duration

if TYPE_CHECKING:
    from harness.engine.accounting.status import Status

app = typer.Typer()

RATES = {  # row of the table -> what workers report; images of controls and adapters are reported as one
    "training images": "dataset_images",
    "training steps": "training_steps",
    "adapter images": "images",
}


@app.command()
def status(
    folder: SweepFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how far a sweep is. Reads the store alone, so any machine that sees it can ask."""
    from harness.engine.accounting.status import status as status_of
    from harness.store.workspace import Workspace

    workspace, here = Workspace.of_sweep(folder)
    found = status_of(workspace, here.name)
    if as_json:
        out.print_json(json.dumps({**asdict(found), "seen": found.seen and found.seen.isoformat()}))
        return
    out.print(styled(found.name, "bold"), _state(found))
    table = Table("", "done", "asked", "a minute", box=None, pad_edge=False)
    for name, counted in found.counts.items():
        rate = found.rates.get(RATES.get(name, ""))
        shown = f"{rate:.1f}" if rate is not None and found.state == "running" else ""
        table.add_row(name, f"{counted.asked - counted.missing}", f"{counted.asked}", shown)
    out.print(table)
    out.print(f"{count(found.trials, 'trial')} planned · {found.stopped} training runs stopped early")
    for number, reason in found.failed.items():
        out.print(styled("failed", "red"), f" trial {number}: {reason}")
    for what, times in found.incidents.items():
        out.print(f"{what}: {times}")


def _state(found: "Status") -> str:
    """Running, finished or not, for how long so far, and the last sign of life."""
    parts: list[str] = [found.state]
    if found.seconds:
        parts.append(f"{duration(found.seconds)} of work so far")
    if found.seen is not None:
        ago = max(0.0, (datetime.now(UTC) - found.seen).total_seconds())
        parts.append(f"last sign of life {duration(ago)} ago")
    return " · ".join(parts)


@app.command("open")
def open_page(folder: SweepFolder) -> None:
    """Open the page of a sweep in the browser."""
    from harness.store.workspace import REPORT, Workspace

    _, here = Workspace.of_sweep(folder)
    page = (here / REPORT).resolve()
    if not page.is_file():
        raise ArtifactError(f"{folder} has no page yet; write one with: harness report {folder}")
    if webbrowser.open(page.as_uri()):
        out.print(f"page: {page}")
    else:
        out.print(f"no browser can be opened here; the page is {page}")
