"""One self-contained HTML page per sweep: the verdict first, then what it rests on."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.results import Results
    from harness.store.workspace import Workspace


def write_report(results: "Results", workspace: "Workspace", target: Path) -> None:
    """Write the page of a sweep to `target`, whole or not at all.

    Image paths in the tables are relative to `workspace`; an image that is gone is said so on the page.
    Raises WorkspaceError where `target` cannot be written.
    """
    from harness.reporting.report.page import write

    write(results, workspace, target)
