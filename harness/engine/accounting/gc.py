"""What the store holds, which sweeps need it, whether it is whole, what can be deleted: for `harness store`.

Kept is what a sweep needs when it is run again (its plan is written before its work begins), and what its
tables name.
"""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from harness.config.plan.plan import Plan, TrainingRun, expand
from harness.config.plan.rungs import rung_only_arms
from harness.config.schema.metric import MetricConfig
from harness.config.schema.sweep import SweepConfig
from harness.engine.completion import MARK
from harness.engine.early_stopping import DECISIONS
from harness.engine.events import EVENTS
from harness.engine.stages.encodings import texts_id, texts_in, texts_of
from harness.engine.stages.scoring import folder_kind, metric_folder
from harness.errors import ArtifactError, HarnessError, ModelError, WorkspaceError
from harness.results.tables import FACTS, SWEEP, check, table_file
from harness.store.artifact import Artifact, is_manifest, read_json
from harness.store.workspace import PLAN, Place, Workspace

# A partial artifact is a folder without a manifest: its builder was killed, or it is half removed.
Kind = Literal["dataset", "part", "latents", "texts", "checkpoint", "images", "scores", "partial"]
NESTED = ("latents", "texts", "checkpoint", "images")  # in a folder with others of one run, arm, …
State = Literal["kept", "removed", "in use"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One folder of the store. `name` is its path below the workspace, `needed_by` the sweeps' names."""

    kind: Kind
    name: str
    place: Place
    size: int  # bytes
    finished_at: datetime
    needed_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found, and done: a damaged artifact with what is wrong, or one that no sweep needs."""

    entry: Entry
    state: State
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Everything in the store, and the sweeps whose needs could not be read, with the reason."""

    entries: tuple[Entry, ...]
    sweeps: tuple[str, ...]
    unreadable: dict[str, str]


def holdings(workspace: Workspace) -> Holdings:
    """All that the store holds, in a stable order. Raises WorkspaceError where there is no workspace."""
    if not workspace.exists():
        raise WorkspaceError(f"--workspace {workspace.address}: there is no such folder")
    with workspace.listing():
        places = list(workspace.places())
        workspace.fetch([place.artifact for place in places if place.artifact.done], is_manifest)
        needs, unreadable = _needs(workspace)
        entries = tuple(_entry(workspace, place, needs) for place in places)
        return Holdings(entries=entries, sweeps=tuple(workspace.sweep_names()), unreadable=unreadable)


def find(found: Holdings, text: str) -> Entry:
    """The entry with this name, or of which an id begins so. Raises WorkspaceError for none or several."""
    wanted = text.strip("/")
    named = [entry for entry in found.entries if entry.name == wanted]
    begun = [
        entry for entry in found.entries if any(part.startswith(wanted) for part in entry.name.split("/")[1:])
    ]
    match named or begun:
        case [entry]:
            return entry
        case []:
            raise WorkspaceError(f"no stage {text!r}; give a name that `harness store ls --json` prints")
        case several:
            some = ", ".join(entry.name for entry in several[:4])
            raise WorkspaceError(f"{len(several)} stages begin with {text!r}: {some}, …; give one's name")


def verify(entries: Sequence[Entry], *, delete: bool) -> list[Finding]:
    """The finished artifacts that do not match their hashes. With `delete` they go, and are made again."""
    findings = []
    for entry in entries:
        artifact = entry.place.artifact
        faults = _faults(artifact)
        if not faults or not artifact.done:  # not done: taken away while it was read
            continue
        if delete:
            _remove(entry)
        state: State = "removed" if delete else "kept"
        findings.append(Finding(entry=entry, state=state, faults=tuple(faults)))
    return findings


def damaged_sweeps(workspace: Workspace) -> list[str]:
    """What is wrong with the tables, the plans and the notes of the workspace's sweeps, sweep by sweep."""
    found = []
    for name in workspace.sweep_names():
        folder = workspace.fetch_sweep(name)
        file = folder / SWEEP
        try:
            if file.is_file():
                check(folder)
            for file in (folder / name for name in (PLAN, EVENTS, DECISIONS, MARK)):
                if file.is_file():
                    read_json(file)
        except ArtifactError as error:
            found.append(str(error))
        except (OSError, ValueError) as error:
            found.append(f"{file} is damaged ({error}); run `harness run` again to write it anew")
    return found


def collect_garbage(workspace: Workspace, *, delete: bool) -> list[Finding]:
    """What no sweep of the workspace needs; with `delete` it is removed.

    A sweep that begins meanwhile waits until this is over, and makes again what it needs and is gone.
    Raises WorkspaceError if a sweep's needs cannot be read: then nothing is removed.
    """
    findings: list[Finding] = []
    with workspace.plans_locked() if delete else nullcontext():
        busy = bool(workspace.driven())
        for entry in _unneeded(workspace):
            findings.append(Finding(entry=entry, state=_state(entry, busy=busy, delete=delete)))
    return findings


def _state(entry: Entry, *, busy: bool, delete: bool) -> State:
    """Of what no sweep needs; it is removed if asked for, but a partial artifact only while no sweep runs."""
    if entry.kind == "partial" and busy:
        return "in use"
    if not delete:
        return "kept"
    _remove(entry)
    return "removed"


def _unneeded(workspace: Workspace) -> list[Entry]:
    found = holdings(workspace)
    for reason in found.unreadable.values():
        raise WorkspaceError(f"{reason}; run that sweep again or delete its folder. Nothing was removed")
    return [entry for entry in found.entries if not entry.needed_by]


def _remove(entry: Entry) -> None:
    artifact = entry.place.artifact
    try:
        artifact.remove()
    except OSError as error:
        raise WorkspaceError(f"{artifact.place} cannot be removed: {error.strerror}") from None
    folder = artifact.path.parent
    if entry.kind in NESTED and folder.is_dir():
        with suppress(OSError):  # another artifact is in it
            folder.rmdir()


def _faults(artifact: Artifact) -> list[str]:
    if not artifact.done:
        return []
    try:
        return list(artifact.damage())
    except ArtifactError as error:
        return [str(error)]


def _entry(workspace: Workspace, place: Place, needs: Sequence["_Needs"]) -> Entry:
    artifact = place.artifact
    whole = artifact.done and place.kind != "begun"
    kind: Kind = "partial" if not artifact.done or place.kind == "begun" else place.kind
    return Entry(
        kind=kind,
        name=workspace.relative(artifact.path),
        place=place,
        size=sum(artifact.contents().values()),
        finished_at=_finished_at(artifact),
        needed_by=tuple(sorted({need.sweep for need in needs if whole and need.of(place)})),
    )


def _finished_at(artifact: Artifact) -> datetime:
    """As its manifest says; where that is missing or damaged, when the folder was last changed."""
    try:
        return datetime.fromisoformat(artifact.manifest()["finished_at"])
    except (ArtifactError, KeyError, TypeError, ValueError):
        pass
    return artifact.changed_at()


def _needs(workspace: Workspace) -> tuple[list["_Needs"], dict[str, str]]:
    """What each sweep needs, and the sweeps of which that cannot be known, with the reason."""
    found: list[_Needs] = []
    unreadable: dict[str, str] = {}
    for name in workspace.sweep_names():
        folder, where = workspace.fetch_sweep(name), workspace.shown(workspace.sweep(name))
        files = [folder / file for file in (PLAN, SWEEP) if (folder / file).is_file()]
        if not files:
            unreadable[name] = f"{where} does not say what its sweep needs: it has no {PLAN}"
        try:
            sweeps: list[SweepConfig] = []  # one, if the sweep is finished and no other has begun
            for file in files:
                sweeps += [sweep for sweep in [_sweep(file)] if sweep not in sweeps]
            named = _named(folder)
            found += [_Needs(workspace, name, expand(sweep), named) for sweep in sweeps]
        except (OSError, ValueError, KeyError, HarnessError):
            unreadable[name] = f"{where} does not hold a sweep that this version reads"
    return found, unreadable


def _sweep(file: Path) -> SweepConfig:
    content = read_json(file)
    return SweepConfig.model_validate({name: value for name, value in content.items() if name not in FACTS})


def _named(folder: Path) -> frozenset[str]:
    """The artifacts that a finished sweep's tables name; an export or a report made later reads them there.

    They are the plan's, unless another version of this program gives the same things other ids.
    """
    if not (folder / SWEEP).is_file():
        return frozenset()
    check(folder)
    trials = pd.read_parquet(folder / table_file("trials"), columns=["dataset_id", "adapter_path"])
    images = pd.read_parquet(folder / table_file("images"), columns=["path"])
    return frozenset(
        [f"datasets/{name}" for name in trials["dataset_id"].unique()]
        + trials["adapter_path"].dropna().tolist()
        + images["path"].str.rpartition("/")[0].unique().tolist()
    )


class _Needs:
    """What one plan of a sweep needs."""

    def __init__(self, workspace: Workspace, sweep: str, plan: Plan, named: frozenset[str]) -> None:
        self.workspace, self.sweep, self.plan, self.named = workspace, sweep, plan, named
        self.steps = {run_id: _needed_steps(workspace, run) for run_id, run in plan.runs.items()}
        self.metrics = tuple(_folder_or_kind(metric) for metric in plan.sweep.metrics)
        self.images: dict[str, frozenset[str]] = {}  # by arm
        models = {arm.model for arm in plan.arms.values()}
        self.texts = {texts_id(model): texts_of(plan, model) for model in models}
        at_rungs = (arm for run_id in plan.runs for arm in rung_only_arms(plan, run_id))
        self.arms = {**plan.arms, **{arm.arm_id: arm for arm in at_rungs}}

    def of(self, place: Place) -> bool:
        """True where the sweep needs what is at this place."""
        path = place.artifact.path
        if self.workspace.relative(path) in self.named:
            return True
        match place.kind:
            case "begun":
                return False
            case "dataset":
                return path.name in self.plan.datasets
            case "part":  # until the dataset is whole
                whole = self.workspace.dataset(path.parent.name).done
                return path.parent.name in self.plan.datasets and not whole
            case "latents":
                return path.parent.name in self.plan.datasets
            case "texts":
                return not self.texts.get(path.parent.name, set()).isdisjoint(texts_in(place.artifact))
            case "checkpoint":
                return path.name in self.steps.get(path.parent.name, ())
            case "images":
                return self._of_images(place.artifact)
            case "scores":
                arm_id, _, chunk_id = path.name.partition("-")
                images = self.workspace.images(arm_id, chunk_id)
                # Images that are gone come back the same, and so do their scores.
                there = bool(images.contents())
                needed = self._of_images(images) if there else arm_id in self.arms
                return needed and path.parent.name.startswith(self.metrics)

    def _of_images(self, chunk: Artifact) -> bool:
        arm = self.arms.get(chunk.path.parent.name)
        if arm is None:
            return False
        if arm.arm_id not in self.images:
            cells = [cell for split in ("dev", "test") for cell in self.plan.cells(arm, split)]
            self.images[arm.arm_id] = frozenset(cell.image_id for cell in cells)
        return any(name.removesuffix(".png") in self.images[arm.arm_id] for name in chunk.contents())


def _needed_steps(workspace: Workspace, run: TrainingRun) -> frozenset[str]:
    """Folders of the checkpoints that are asked for and, while one is missing, of what training goes on from.

    Also those that the needed ones were themselves trained on from: their manifests add up to its seconds.
    """
    finished = workspace.checkpoints(run.run_id)
    whole = all(steps in finished for steps in run.checkpoints)
    needed = {steps for steps in finished if steps in run.checkpoints or not whole}
    open_ends = list(needed)
    while open_ends:
        before = _from_step(finished[open_ends.pop()])
        if before in finished and before not in needed:
            needed.add(before)
            open_ends.append(before)
    return frozenset(finished[steps].path.name for steps in needed)


def _from_step(checkpoint: Artifact) -> int:
    try:
        return int(checkpoint.manifest()["facts"]["from_step"])
    except (ArtifactError, KeyError, TypeError, ValueError):  # damaged: `verify` says so
        return 0


def _folder_or_kind(metric: MetricConfig) -> str:
    """How its folder's name begins; where its weights are not on this machine, that of all of its kind."""
    try:
        return metric_folder(metric)
    except ModelError:
        return f"{folder_kind(metric)}-"


def manifest_of(entry: Entry) -> dict[str, Any] | None:
    """An artifact's manifest, None if it is partial. Raises ArtifactError if it cannot be read."""
    return entry.place.artifact.manifest() if entry.place.artifact.done else None
