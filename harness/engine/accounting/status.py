"""How far a sweep is, from the store alone: on any machine that reads it, whether or not the sweep runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from harness import results
from harness.config.plan.plan import expand
from harness.engine.accounting.inventory import inventory
from harness.engine.collect import begun
from harness.engine.early_stopping import Decisions, as_decided
from harness.engine.events import EVENTS
from harness.engine.stages.context import Count
from harness.errors import ArtifactError
from harness.results.tables import SWEEP
from harness.store.artifact import read_json
from harness.store.workspace import Workspace

State = Literal["running", "finished", "not running"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """A sweep as its files show it now."""

    name: str
    state: State
    trials: int  # that are planned; a search plans more as it goes on
    counts: Mapping[str, Count]  # as `harness check` has them, without what early stopping spares
    stopped: int  # training runs, by early stopping
    failed: Mapping[int, str]  # number of a trial -> reason, of the last tables
    seconds: float  # of all calls of the sweep so far
    rates: Mapping[str, float]  # per minute over the last call, by kind
    seen: datetime | None  # when its driver wrote last: while it makes something, once a minute
    incidents: Mapping[str, int]


def status(workspace: Workspace, name: str) -> Status:
    """The status of a sweep in a workspace. Raises ArtifactError if no sweep was begun there."""
    folder = workspace.fetch_sweep(name)
    sweep = begun(folder)
    if sweep is None:
        raise ArtifactError(f"{workspace.shown(folder)}: no sweep was begun here; give WORKSPACE/sweeps/NAME")
    plan, decisions = expand(sweep), Decisions(sweep, workspace)
    with workspace.listing():
        counts = inventory(as_decided(plan, decisions), workspace)
    finished = (folder / SWEEP).is_file()
    running = name in workspace.driven()
    kept = _kept(folder)
    call: Mapping[str, Any] = kept.get("call", {})
    minutes = call.get("seconds", 0.0) / 60
    return Status(
        name=name,
        state="running" if running else "finished" if finished else "not running",
        trials=len(plan.trials),
        counts=counts,
        stopped=len(decisions.stops),
        failed=_failed(results.load(folder)) if finished else {},
        seconds=kept.get("seconds", 0.0),
        rates={kind: made / minutes for kind, made in call.get("made", {}).items() if minutes},
        seen=datetime.fromisoformat(kept["written_at"]) if "written_at" in kept else None,
        incidents={what: facts["count"] for what, facts in kept.get("events", {}).items()},
    )


def _kept(folder: Path) -> dict[str, Any]:
    """What its driver keeps; empty where that cannot be read."""
    try:
        kept: dict[str, Any] = read_json(folder / EVENTS)
    except (OSError, ValueError):
        return {}
    return kept


def _failed(found: results.Results) -> dict[int, str]:
    trials = found.trials[found.trials["status"] == "failed"]
    return {int(row["index"]): row["reason"] for row in trials.to_dict("records")}
