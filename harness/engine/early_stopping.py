"""Early stopping of a sweep: intermediate results at the rungs, and the stored decisions.

A decision is final for its settings: a later call neither trains a stopped run further nor compares it again,
and the scheduler learns the earlier intermediate results first. Under other settings a stopped run resumes
from its last checkpoint. Images of a rung are ordinary artifacts, reused by a trial of that length.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.plan.plan import Plan, ResolvedArm, Trial
from harness.config.plan.rungs import IntermediateResult, Rung
from harness.config.schema.base import fingerprint
from harness.config.schema.metric import MetricConfig
from harness.config.schema.search import FifoScheduler, RungObjective, SchedulerConfig
from harness.config.schema.sweep import SweepConfig
from harness.engine.stages.context import Context
from harness.engine.stages.sampling import IMAGES, Wanted, make_images, read_parquet
from harness.engine.stages.scoring import SCORES, make_scores, metric_folder
from harness.results.summary import mean_difference
from harness.store.artifact import read_json, write_json
from harness.store.training_record import RECORD, TrainingRecord
from harness.store.workspace import Workspace

DECISIONS = "decisions.json"  # in a sweep's folder


@dataclass(frozen=True, kw_only=True)
class Decision:
    """An intermediate result, and whether the run was stopped there."""

    result: IntermediateResult
    stopped: bool


class Decisions:
    """All decisions of a sweep under its present scheduler, in the order in which they were made."""

    def __init__(self, sweep: SweepConfig, workspace: Workspace) -> None:
        """Read what was decided so far. If it cannot be read, runs are compared again."""
        self.scheduler, self.name, self.workspace = sweep.scheduler, sweep.name, workspace
        self.rules = _rules(sweep)
        self.made: dict[tuple[str, int], Decision] = {}
        if not isinstance(self.scheduler, FifoScheduler):
            self.made = _read(workspace.fetch_sweep(self.name) / DECISIONS, self.rules)

    def of(self, run_id: str, step: int) -> Decision | None:
        """The decision at a rung, None if there is none yet."""
        return self.made.get((run_id, step))

    def add(self, *decisions: Decision) -> None:
        """Add decisions; they are on the disk before anything follows from them."""
        self.made |= {(decision.result.run_id, decision.result.step): decision for decision in decisions}
        rows = [{**asdict(made.result), "stopped": made.stopped} for made in self.made.values()]
        write_json(self.workspace.sweep(self.name) / DECISIONS, {"rules": self.rules, "decisions": rows})
        self.workspace.upload_sweep(self.name, [DECISIONS])

    @property
    def stops(self) -> dict[str, IntermediateResult]:
        """The result at which each stopped run was stopped, by its id."""
        return {run_id: made.result for (run_id, _), made in self.made.items() if made.stopped}


def why_stopped(scheduler: SchedulerConfig, result: IntermediateResult) -> str:
    """The reason, in one line."""
    assert not isinstance(scheduler, FifoScheduler)
    objective = scheduler.objective
    named = "contrast" if isinstance(objective, RungObjective) else "validation loss"
    return f"stopped by {scheduler.kind} at step {result.step}: {named} {result.value:.4g}"


def as_decided(plan: Plan, decisions: Decisions, *, failed: Collection[str] = ()) -> Plan:
    """What is left of a plan: trials that were not stopped, and what they need.

    A stopped run is kept up to where it was stopped; those that `failed` are left out.
    """
    stops = decisions.stops
    if not stops and not failed:
        return plan
    ends = {**{run_id: result.step for run_id, result in stops.items()}, **dict.fromkeys(failed, 0)}
    trials = tuple(
        t
        for t in plan.trials
        if t.run_id is None or t.run_id not in ends or t.config.trained.training.steps <= ends[t.run_id]
    )
    return restricted(plan, trials, {run_id: result.step for run_id, result in stops.items()})


def restricted(plan: Plan, trials: tuple[Trial, ...], stops: Mapping[str, int]) -> Plan:
    """The plan of these trials and the controls. A stopped run is kept up to its step in `stops`."""
    needed = {arm_id for trial in trials for arm_id in trial.arms.values()}
    needed |= {arm.arm_id for arm in (*plan.control_arms, *plan.matched_arms)}
    arms = {arm_id: arm for arm_id, arm in plan.arms.items() if arm_id in needed}
    steps: dict[str, set[int]] = {run_id: {step} for run_id, step in stops.items()}
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
    if not isinstance(scheduler, FifoScheduler) and isinstance(scheduler.objective, RungObjective):
        objective = sweep.meant(scheduler.objective)
        parts |= {
            "arms": [arm for arm in sweep.arms if arm.name in (objective.arm, objective.control)],
            "metric": next(metric for metric in sweep.metrics if metric.name == objective.metric),
            "prompts": [prompt.text for prompt in sweep.prompts if prompt.split == "dev"][
                : objective.prompts
            ],
            "seeds": sweep.seeds[: objective.seeds],
            "sampler": sweep.sampler,
        }
    return fingerprint("rules", **parts)


def _read(file: Path, rules: str) -> dict[tuple[str, int], Decision]:
    try:
        content = read_json(file)
        if content["rules"] != rules:
            return {}
        made = [
            Decision(stopped=row.pop("stopped"), result=IntermediateResult(**row))
            for row in content["decisions"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {(decision.result.run_id, decision.result.step): decision for decision in made}


def rung_results(ctx: Context, rungs: Sequence[Rung]) -> list[IntermediateResult]:
    """The values at these rungs, of which there is a checkpoint each, in their order.

    The images of all of them are generated together; the control's are there, or are made here.
    """
    wanted: dict[str, Wanted] = {}
    for rung in rungs:
        for arm, cells in zip((rung.control, rung.arm), reversed(rung.cells), strict=True):
            if arm is not None:
                wanted[arm.arm_id] = arm, cells
    make_images(ctx, list(wanted.values()))
    results = []
    for rung in rungs:
        if rung.arm is None or rung.control is None or rung.metric is None:
            results.append(_loss(ctx, rung))
            continue
        make_scores(ctx, [wanted[rung.control.arm_id], wanted[rung.arm.arm_id]], (rung.metric,))
        value = _difference(ctx, rung.arm, rung.control, rung)
        reason = "no pair of images has both scores" if value is None else None
        results.append(IntermediateResult(rung.run_id, rung.step, value, reason))
    return results


def _difference(ctx: Context, own: ResolvedArm, control: ResolvedArm, rung: Rung) -> float | None:
    """Arm − control over the rung's images, as far as they are scored; None without a pair.

    Raises ArtifactError if something that is read is damaged.
    """
    assert rung.metric is not None
    wanted = [cell.image_id for cells in rung.cells for cell in cells]
    images = pd.concat([_images(ctx, arm) for arm in (own, control)])
    images = images[images["image_id"].isin(wanted)].assign(split="dev")
    scores = pd.concat([_scores(ctx, arm, rung.metric) for arm in (own, control)])
    return mean_difference(
        images.reset_index(drop=True),
        scores[scores["image_id"].isin(images["image_id"])].reset_index(drop=True),
        own=own.arm_id,
        control=control.arm_id,
        metric=rung.metric.name,
    )


def _images(ctx: Context, arm: ResolvedArm) -> pd.DataFrame:
    chunks = ctx.workspace.image_chunks(arm.arm_id)
    return pd.concat([read_parquet(chunk, IMAGES) for chunk in chunks])


def _scores(ctx: Context, arm: ResolvedArm, metric: MetricConfig) -> pd.DataFrame:
    chunks = ctx.workspace.image_chunks(arm.arm_id)
    artifacts = [ctx.workspace.scores(metric_folder(metric), chunk) for chunk in chunks]
    frames = [read_parquet(artifact, SCORES) for artifact in artifacts if artifact.done]
    return pd.concat(frames).assign(metric=metric.name)


def _loss(ctx: Context, rung: Rung) -> IntermediateResult:
    """The held-out loss at a checkpoint."""
    checkpoint = ctx.workspace.checkpoint(rung.run_id, rung.step)
    value = TrainingRecord.parse(checkpoint.read(RECORD)).held_out_loss(rung.step)
    # None at a checkpoint of an earlier call that was not a rung then.
    reason = None if value is not None else "its held-out loss was not taken there"
    return IntermediateResult(rung.run_id, rung.step, value, reason)
