"""Results: the tables of a finished sweep as pandas frames, paired and tested. Imports neither torch nor ray.

from harness import results
r = results.load("workspace/sweeps/quickstart")
r  # in a notebook: verdict, controls, counts
r.summary, r.pairs(), r.wide(), r.losses, r.columns("pairs")
r.compare(a={"adapter.rank": 8}, b={"adapter.rank": 2}, by=["recipe"])
r.show(r.pairs().head(6)), r.grid(x="arm", y="prompt")
results.sweeps("workspace"), results.load_many([...]).compare(a={"sweep": "one"}, b={"sweep": "two"})
results.plot.heat_map(frame, x="training.steps", y="adapter.rank")
"""

from pathlib import Path

from harness.results import plot
from harness.results.notebook.compare import infer
from harness.results.notebook.many import SweepSet, load_many, sweeps
from harness.results.notebook.results import NotebookResults
from harness.results.sweep_results import Results
from harness.store.workspace import Workspace

__all__ = ["NotebookResults", "Results", "SweepSet", "infer", "load", "load_many", "plot", "sweeps"]


def load(path: str | Path) -> NotebookResults:
    """The results in WORKSPACE/sweeps/NAME.

    Raises WorkspaceError if the folder is missing or holds no finished sweep, ArtifactError if a table is
    damaged or of another schema version.
    """
    workspace, folder = Workspace.of_sweep(path)
    return NotebookResults.read(folder, workspace)
