"""What a scheduler has decided in a sweep, remembered in its folder: which runs were stopped, where and why.

A decision stands: the same command again neither trains on what was stopped nor asks about it again, and the
scheduler learns of all earlier looks before new ones. Under other rules (another scheduler, other prompts to
look at) nothing of it counts, and a stopped run goes on from its last snapshot.
"""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.spec.expand import Plan
from harness.spec.fingerprint import fingerprint
from harness.spec.objective import ProbeObjective
from harness.spec.scheduler import FifoScheduler, SchedulerSpec
from harness.spec.sweep import SweepSpec
from harness.stage import write_json
from harness.workspace import Workspace

DECISIONS = "decisions.json"  # in a sweep's folder


@dataclass(frozen=True)
class Look:
    """What a run had come to. `value` is null where it could not be told, and `reason` says why."""

    run_id: str
    step: int
    value: float | None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A look, and whether the run was stopped there."""

    look: Look
    stopped: bool


class Decisions:
    """All decisions of a sweep under its present scheduler, in the order in which they were made."""

    def __init__(self, sweep: SweepSpec, workspace: Workspace) -> None:
        """Read what was decided so far. Where it cannot be read, runs are looked at again."""
        self.scheduler, self.name, self.workspace = sweep.scheduler, sweep.name, workspace
        self.rules = _rules(sweep)
        self.made: dict[tuple[str, int], Decision] = {}
        if not isinstance(self.scheduler, FifoScheduler):
            self.made = _read(workspace.fetch_sweep(self.name) / DECISIONS, self.rules)

    def of(self, run_id: str, step: int) -> Decision | None:
        """The decision at a look, null where none was made."""
        return self.made.get((run_id, step))

    def add(self, *decisions: Decision) -> None:
        """Remember more, on the disk before anything follows from them."""
        self.made |= {(decision.look.run_id, decision.look.step): decision for decision in decisions}
        rows = [{**asdict(made.look), "stopped": made.stopped} for made in self.made.values()]
        write_json(self.workspace.sweep(self.name) / DECISIONS, {"rules": self.rules, "decisions": rows})
        self.workspace.upload_sweep(self.name, [DECISIONS])

    @property
    def stops(self) -> dict[str, Look]:
        """The look at which each stopped run was stopped, by its id."""
        return {run_id: made.look for (run_id, _), made in self.made.items() if made.stopped}


def steps_of_looks(plan: Plan, run_id: str) -> tuple[int, ...]:
    """The steps at which the sweep's scheduler looks at a run; none for what is not a trial's own."""
    scheduler = plan.sweep.scheduler
    if isinstance(scheduler, FifoScheduler) or run_id not in plan.own_runs:
        return ()
    return scheduler.looks(plan.runs[run_id].snapshots[-1])


def why_stopped(scheduler: SchedulerSpec, look: Look) -> str:
    """The reason, in one line."""
    assert not isinstance(scheduler, FifoScheduler)
    objective = scheduler.objective
    named = "contrast" if isinstance(objective, ProbeObjective) else "validation loss"
    return f"stopped by {scheduler.kind} at step {look.step}: {named} {look.value:.4g}"


def as_decided(plan: Plan, decisions: Decisions, *, failed: Collection[str] = ()) -> Plan:
    """What is left of a plan: trials that were not stopped, and what they need.

    A stopped run is kept up to where it was stopped; those that `failed` are left out.
    """
    stops = decisions.stops
    if not stops and not failed:
        return plan
    ends = {**{run_id: look.step for run_id, look in stops.items()}, **dict.fromkeys(failed, 0)}
    trials = tuple(t for t in plan.trials if t.run_id not in ends or t.spec.training.steps <= ends[t.run_id])
    needed = {draw_id for trial in trials for draw_id in trial.draws.values()}
    needed |= {draw.draw_id for draw in plan.control_draws}
    draws = {draw_id: draw for draw_id, draw in plan.draws.items() if draw_id in needed}
    steps: dict[str, set[int]] = {run_id: {look.step} for run_id, look in stops.items()}
    for trial in trials:
        steps.setdefault(trial.run_id, set()).add(trial.spec.training.steps)
    for adapter in (adapter for draw in draws.values() for adapter in draw.adapters):
        if adapter.run_id is not None and adapter.steps is not None:
            steps.setdefault(adapter.run_id, set()).add(adapter.steps)
    runs = {
        run_id: replace(run, snapshots=tuple(sorted(steps[run_id])))
        for run_id, run in plan.runs.items()
        if run_id in steps
    }
    return replace(plan, trials=trials, draws=draws, runs=runs)


def _rules(sweep: SweepSpec) -> str:
    """The fingerprint of what the values that are looked at, and the answers to them, hang on."""
    scheduler = sweep.scheduler
    parts: dict[str, Any] = {"scheduler": scheduler}
    if not isinstance(scheduler, FifoScheduler) and isinstance(scheduler.objective, ProbeObjective):
        probe = sweep.meant(scheduler.objective)
        parts |= {
            "arms": [arm for arm in sweep.arms if arm.name in (probe.arm, probe.control)],
            "metric": next(metric for metric in sweep.metrics if metric.kind == probe.metric),
            "prompts": [prompt.text for prompt in sweep.prompts if prompt.split == "dev"][: probe.prompts],
            "seeds": sweep.seeds[: probe.seeds],
            "sampler": sweep.sampler,
        }
    return fingerprint("rules", **parts)


def _read(file: Path, rules: str) -> dict[tuple[str, int], Decision]:
    try:
        content = json.loads(file.read_text())
        if content["rules"] != rules:
            return {}
        made = [Decision(stopped=row.pop("stopped"), look=Look(**row)) for row in content["decisions"]]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {(decision.look.run_id, decision.look.step): decision for decision in made}
