"""One self-contained HTML page per sweep: the verdict first, then what it rests on."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.reporting.report.thumbnails import Cache
    from harness.results import Results
    from harness.store.workspace import Workspace


def write_report(
    results: "Results", workspace: "Workspace", target: Path, *, cache: "Cache | None" = None
) -> None:
    """Write the page of a sweep to `target`, whole or not at all.

    Image paths in the tables are relative to `workspace`; an image that is gone is said so on the page. A
    `cache` that is given again spares a page that is written often the work of its thumbnails. Raises
    WorkspaceError where `target` cannot be written.
    """
    from harness.reporting.report.page import write

    write(results, workspace, target, cache=cache)


def write_bundle(results: "Results", workspace: "Workspace", folder: Path, *, zipped: bool = False) -> Path:
    """Write `report.html` and every original image into a folder that works wherever it is moved.

    `zipped`: as one archive beside it, `folder.zip`, instead. What was written is returned. Raises
    WorkspaceError where nothing can be written there.
    """
    from harness.reporting.report.page import bundle

    return bundle(results, workspace, folder, zipped=zipped)
