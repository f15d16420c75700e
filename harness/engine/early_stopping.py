"""Early stopping of a sweep: intermediate results at the rungs, and the stored decisions.

A decision is final for its settings: a later call neither trains a stopped run further nor compares it again,
and the scheduler learns the earlier intermediate results first. Under other settings a stopped run resumes
from its last checkpoint. Images of a rung are ordinary artifacts, reused by a trial of that length.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.plan.plan import Cell, Plan, ResolvedArm
from harness.config.plan.rungs import Look, probe_cells, probe_draws, probe_objective
from harness.config.schema.base import fingerprint
from harness.config.schema.search import FifoScheduler, ProbeObjective, SchedulerConfig
from harness.config.schema.sweep import SweepConfig
from harness.engine.stages.context import Context
from harness.engine.stages.sampling import IMAGES, ensure_all_images, read_parquet
from harness.engine.stages.scoring import SCORES, ensure_scores, metric_folder
from harness.results.summary import mean_difference
from harness.store.artifact import read_json, write_json
from harness.store.training_record import RECORD, TrainingRecord
from harness.store.workspace import Workspace

DECISIONS = "decisions.json"  # in a sweep's folder


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A look, and whether the run was stopped there."""

    look: Look
    stopped: bool


class Decisions:
    """All decisions of a sweep under its present scheduler, in the order in which they were made."""

    def __init__(self, sweep: SweepConfig, workspace: Workspace) -> None:
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


def why_stopped(scheduler: SchedulerConfig, look: Look) -> str:
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
    trials = tuple(
        t
        for t in plan.trials
        if t.run_id is None or t.run_id not in ends or t.config.trained.training.steps <= ends[t.run_id]
    )
    needed = {arm_id for trial in trials for arm_id in trial.arms.values()}
    needed |= {arm.arm_id for arm in plan.control_arms}
    arms = {arm_id: arm for arm_id, arm in plan.arms.items() if arm_id in needed}
    steps: dict[str, set[int]] = {run_id: {look.step} for run_id, look in stops.items()}
    for trial in trials:
        if trial.run_id is not None:
            steps.setdefault(trial.run_id, set()).add(trial.config.trained.training.steps)
    for adapter in (adapter for arm in arms.values() for adapter in arm.adapters):
        if adapter.run_id is not None and adapter.steps is not None:
            steps.setdefault(adapter.run_id, set()).add(adapter.steps)
    runs = {
        run_id: replace(run, checkpoints=tuple(sorted(steps[run_id])))
        for run_id, run in plan.runs.items()
        if run_id in steps
    }
    return replace(plan, trials=trials, arms=arms, runs=runs)


def _rules(sweep: SweepConfig) -> str:
    """The fingerprint of everything that the intermediate values and the decisions depend on."""
    scheduler = sweep.scheduler
    parts: dict[str, Any] = {"scheduler": scheduler}
    if not isinstance(scheduler, FifoScheduler) and isinstance(scheduler.objective, ProbeObjective):
        probe = sweep.meant(scheduler.objective)
        parts |= {
            "arms": [arm for arm in sweep.arms if arm.name in (probe.arm, probe.control)],
            "metric": next(metric for metric in sweep.metrics if metric.name == probe.metric),
            "prompts": [prompt.text for prompt in sweep.prompts if prompt.split == "dev"][: probe.prompts],
            "seeds": sweep.seeds[: probe.seeds],
            "sampler": sweep.sampler,
        }
    return fingerprint("rules", **parts)


def _read(file: Path, rules: str) -> dict[tuple[str, int], Decision]:
    try:
        content = read_json(file)
        if content["rules"] != rules:
            return {}
        made = [Decision(stopped=row.pop("stopped"), look=Look(**row)) for row in content["decisions"]]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {(decision.look.run_id, decision.look.step): decision for decision in made}


def looks_at(ctx: Context, run_ids: Sequence[str], step: int) -> list[Look]:
    """What the runs have come to at this step, of which there must be a checkpoint each; in their order.

    The images of all of them are drawn together.
    """
    objective = probe_objective(ctx.plan)
    if not isinstance(objective, ProbeObjective):
        return [_loss(ctx, run_id, step) for run_id in run_ids]
    probed = [probe_draws(ctx.plan, run_id, step) for run_id in run_ids]
    arms = list({arm.arm_id: arm for own_arm, control in probed for arm in (control, own_arm)}.values())
    ensure_all_images(ctx, [(arm, probe_cells(ctx.plan, arm)) for arm in arms])
    for arm in arms:
        ensure_scores(ctx, arm)
    looks = []
    for run_id, (own_arm, control) in zip(run_ids, probed, strict=True):
        wanted = probe_cells(ctx.plan, control) + probe_cells(ctx.plan, own_arm)
        value = _difference(ctx, own_arm, control, wanted, metric=str(objective.metric))
        reason = "no pair of images has both scores" if value is None else None
        looks.append(Look(run_id=run_id, step=step, value=value, reason=reason))
    return looks


def _difference(
    ctx: Context, own_arm: ResolvedArm, control: ResolvedArm, wanted: Sequence[Cell], *, metric: str
) -> float | None:
    """Arm − control over these images of theirs, as far as they are drawn and scored; null without a pair.

    Raises ArtifactError where something that is read is damaged.
    """
    images = pd.concat([_drawn(ctx, arm) for arm in (own_arm, control)])
    images = images[images["image_id"].isin([cell.image_id for cell in wanted])].assign(split="dev")
    scores = pd.concat([_scores(ctx, arm, metric) for arm in (own_arm, control)])
    return mean_difference(
        images.reset_index(drop=True),
        scores[scores["image_id"].isin(images["image_id"])].reset_index(drop=True),
        own=own_arm.arm_id,
        control=control.arm_id,
        metric=metric,
    )


def up_to(ctx: Context, run_ids: Collection[str], step: int) -> Context:
    """The same work with runs that end at this step."""
    runs = dict(ctx.plan.runs)
    for run_id in run_ids:
        checkpoints = tuple(sorted({step, *(before for before in runs[run_id].checkpoints if before < step)}))
        runs[run_id] = replace(runs[run_id], checkpoints=checkpoints)
    return replace(ctx, plan=replace(ctx.plan, runs=runs))


def _drawn(ctx: Context, arm: ResolvedArm) -> pd.DataFrame:
    chunks = ctx.workspace.image_chunks(arm.arm_id)
    return pd.concat([read_parquet(chunk, IMAGES) for chunk in chunks])


def _scores(ctx: Context, arm: ResolvedArm, metric: str) -> pd.DataFrame:
    config = next(config for config in ctx.plan.sweep.metrics if config.name == metric)
    chunks = ctx.workspace.image_chunks(arm.arm_id)
    artifacts = [ctx.workspace.scores(metric_folder(config), chunk) for chunk in chunks]
    return pd.concat([read_parquet(artifact, SCORES) for artifact in artifacts]).assign(metric=metric)


def _loss(ctx: Context, run_id: str, step: int) -> Look:
    """The held-out loss at a checkpoint."""
    checkpoint = ctx.workspace.checkpoint(run_id, step)
    value = TrainingRecord.parse(checkpoint.read(RECORD)).held_out_loss(step)
    reason = (
        None if value is not None else "its held-out loss was not taken there"
    )  # a mere checkpoint before
    return Look(run_id=run_id, step=step, value=value, reason=reason)
