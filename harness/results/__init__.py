"""Results: the tables of a finished sweep as pandas frames, paired and tested. Imports neither torch nor ray.

from harness import results
r = results.load("workspace/sweeps/quickstart")
r.summary, r.pairs(), r.wide(), r.losses, r.image(r.images["image_id"][0])
"""

from pathlib import Path

from harness.results.sweep_results import Results
from harness.store.workspace import Workspace

__all__ = ["Results", "load"]


def load(path: str | Path) -> Results:
    """The results in WORKSPACE/sweeps/NAME.

    Raises WorkspaceError if the folder is missing or holds no finished sweep, ArtifactError if a table is
    damaged or of another schema version.
    """
    workspace, folder = Workspace.of_sweep(path)
    return Results.read(folder, workspace)
