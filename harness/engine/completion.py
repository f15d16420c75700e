"""The completion marker of a sweep, so that a second run finishes without reading the whole store.

The marker is one hash: of the sweep as read, of the code, of the tables and the page, and of the size and
time of change of each file that the tables are read from. Any difference invalidates it. Damage that leaves
size and time as they were is not seen by it: `harness store verify` reads every byte.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import harness
from harness import results
from harness.config.plan.plan import Plan
from harness.engine.early_stopping import DECISIONS
from harness.engine.stages.sampling import IMAGES
from harness.engine.stages.scoring import SCORES, metric_folder
from harness.errors import HarnessError
from harness.results import Results
from harness.results.tables import FILES
from harness.store.artifact import Artifact, read_json, sha256, versions, write_json
from harness.store.training_record import RECORD
from harness.store.workspace import REPORT, Workspace

MARK = "finished.json"
SHOWN = (*FILES, REPORT, DECISIONS)


def mark(plan: Plan, workspace: Workspace) -> None:
    """Note that the sweep is finished as the store and its tables are now."""
    folder = workspace.sweep(plan.sweep.name)
    write_json(folder / MARK, {"made_of": _made_of(plan, workspace, folder)})
    workspace.upload_sweep(plan.sweep.name, [MARK])


def marked(plan: Plan, workspace: Workspace) -> Results | None:
    """The results of a sweep that is finished and of which nothing has changed since; else null."""
    try:
        folder = workspace.fetch_sweep(plan.sweep.name)
        noted = read_json(folder / MARK)["made_of"]
        if noted == _made_of(plan, workspace, folder):
            return results.load(folder)
    except (OSError, ValueError, KeyError, TypeError, HarnessError):  # no mark, or one that says nothing
        pass
    return None


def confirmed(plan: Plan, found: Results) -> int:
    """How many test images a finished sweep has of the selected trial, in the arms that waited for it."""
    own = [arm.name for arm in plan.sweep.arms if arm.waits_for_selection]
    selected = found.trials.loc[found.trials["selected"].astype(bool), "trial_id"]
    arms = found.arms[found.arms["arm"].isin(own) & found.arms["trial_id"].isin(selected)]
    tested = found.images.loc[found.images["split"] == "test", "arm_id"].value_counts()
    return int(arms["arm_id"].map(tested).fillna(0).sum())


def _made_of(plan: Plan, workspace: Workspace, folder: Path) -> str:
    """Hex sha256 of all that decides what the tables and the page in the folder say, and of themselves."""
    digest = hashlib.sha256(plan.sweep.model_dump_json().encode())
    digest.update(json.dumps(versions(), sort_keys=True).encode())
    with workspace.listing():
        for line in (*_code(), *_tables(folder), *_artifacts(plan, workspace)):
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _code() -> Iterator[str]:
    """Of this package as it is installed: other code may make other tables or another page."""
    package = Path(harness.__file__).parent
    kinds = (".py", ".j2", ".css", ".js")
    for file in sorted(file for file in package.rglob("*.*") if file.suffix in kinds):
        yield f"{file.relative_to(package)} {sha256(file)}"


def _tables(folder: Path) -> Iterator[str]:
    for file in (folder / name for name in SHOWN):
        yield f"{file.name} {sha256(file) if file.is_file() else 'none'}"


def _artifacts(plan: Plan, workspace: Workspace) -> Iterator[str]:
    """What of the store the tables are read from."""
    metrics = [metric_folder(metric) for metric in plan.sweep.metrics]
    for dataset_id in plan.datasets:
        yield _stamped(workspace, workspace.dataset(dataset_id))
    for run_id in plan.runs:
        for checkpoint in workspace.checkpoints(run_id).values():
            yield _stamped(workspace, checkpoint, RECORD)
    for arm_id in plan.arms:
        for chunk in workspace.image_chunks(arm_id):
            yield _stamped(workspace, chunk, IMAGES)
            for metric in metrics:
                yield _stamped(workspace, workspace.scores(metric, chunk), SCORES)


def _stamped(workspace: Workspace, artifact: Artifact, *names: str) -> str:
    return f"{workspace.relative(artifact.path)} {artifact.stamp(*names)}"
