"""Looking at a training run on its way: some of its pictures against the control's, or its held-out loss.

What is drawn are ordinary pictures of the store: a trial that ends at that step, or another look, finds them.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import pandas as pd

from harness.bench import Bench
from harness.decisions import Look, steps_of_looks
from harness.picture_stages import IMAGES, ensure_all_pictures, ensure_pictures, read_parquet
from harness.results.stats import mean_difference
from harness.spec.expand import Cell, Draw, Plan, cells, draw_at
from harness.spec.objective import ProbeObjective
from harness.spec.scheduler import FifoScheduler
from harness.stages import SCORES, ensure_scores, metric_name
from harness.training.record import RECORD, TrainingRecord


def looks_at(bench: Bench, run_ids: Sequence[str], step: int) -> list[Look]:
    """What the runs have come to at this step, of which there must be a snapshot each; in their order.

    The pictures of all of them are drawn together.
    """
    objective = _objective(bench.plan)
    if not isinstance(objective, ProbeObjective):
        return [_loss(bench, run_id, step) for run_id in run_ids]
    probed = [probe_draws(bench.plan, run_id, step) for run_id in run_ids]
    draws = list({draw.draw_id: draw for arm, control in probed for draw in (control, arm)}.values())
    ensure_all_pictures(bench, [(draw, probe_cells(bench.plan, draw)) for draw in draws])
    for draw in draws:
        while not ensure_scores(bench, draw):
            ensure_pictures(bench, draw, probe_cells(bench.plan, draw))
    looks = []
    for run_id, (arm, control) in zip(run_ids, probed, strict=True):
        wanted = probe_cells(bench.plan, control) + probe_cells(bench.plan, arm)
        value = _difference(bench, arm, control, wanted, metric=str(objective.metric))
        reason = "no pair of pictures has both scores" if value is None else None
        looks.append(Look(run_id=run_id, step=step, value=value, reason=reason))
    return looks


def _difference(
    bench: Bench, arm: Draw, control: Draw, wanted: Sequence[Cell], *, metric: str
) -> float | None:
    """Arm − control over these pictures of theirs, as far as they are drawn and scored; null without a pair.

    Raises StageError where something that is read is damaged.
    """
    images = pd.concat([_drawn(bench, draw) for draw in (arm, control)])
    images = images[images["image_id"].isin([cell.image_id for cell in wanted])].assign(split="dev")
    scores = pd.concat([_scores(bench, draw, metric) for draw in (arm, control)])
    return mean_difference(
        images.reset_index(drop=True),
        scores[scores["image_id"].isin(images["image_id"])].reset_index(drop=True),
        arm=arm.draw_id,
        control=control.draw_id,
        metric=metric,
    )


def probe_draws(plan: Plan, run_id: str, step: int) -> tuple[Draw, Draw]:
    """The arm with the run's snapshot at this step, and the control; neither needs other training."""
    objective = _objective(plan)
    assert isinstance(objective, ProbeObjective)
    trial = next(trial for trial in plan.trials if trial.run_id == run_id)
    arm, control = (plan.draws[trial.draws[str(name)]] for name in (objective.arm, objective.control))
    return draw_at(arm, step), control


def probe_cells(plan: Plan, draw: Draw) -> tuple[Cell, ...]:
    """The pictures of a draw that a look is at."""
    objective = _objective(plan)
    assert isinstance(objective, ProbeObjective)
    dev = [prompt for prompt in plan.sweep.prompts if prompt.split == "dev"]
    return tuple(cells(draw, tuple(dev[: objective.prompts]), plan.sweep.seeds[: objective.seeds], "dev"))


def probes_of_run(plan: Plan, run_id: str) -> Iterator[Draw]:
    """What is drawn of a run at its looks alone, where they are at pictures."""
    if not isinstance(_objective(plan), ProbeObjective):
        return
    for step in steps_of_looks(plan, run_id):
        draw, _ = probe_draws(plan, run_id, step)
        if draw.draw_id not in plan.draws:
            yield draw


def up_to(bench: Bench, run_ids: Collection[str], step: int) -> Bench:
    """The same work with runs that end at this step."""
    runs = dict(bench.plan.runs)
    for run_id in run_ids:
        snapshots = tuple(sorted({step, *(before for before in runs[run_id].snapshots if before < step)}))
        runs[run_id] = replace(runs[run_id], snapshots=snapshots)
    return replace(bench, plan=replace(bench.plan, runs=runs))


def _objective(plan: Plan) -> object:
    scheduler = plan.sweep.scheduler
    return None if isinstance(scheduler, FifoScheduler) else plan.sweep.meant(scheduler.objective)


def _drawn(bench: Bench, draw: Draw) -> pd.DataFrame:
    chunks = bench.workspace.image_chunks(draw.draw_id)
    return pd.concat([read_parquet(chunk, IMAGES) for chunk in chunks])


def _scores(bench: Bench, draw: Draw, metric: str) -> pd.DataFrame:
    spec = next(spec for spec in bench.plan.sweep.metrics if spec.kind == metric)
    chunks = bench.workspace.image_chunks(draw.draw_id)
    stages = [bench.workspace.scores(metric_name(spec), chunk) for chunk in chunks]
    return pd.concat([read_parquet(stage, SCORES) for stage in stages])


def _loss(bench: Bench, run_id: str, step: int) -> Look:
    """The held-out loss at a snapshot."""
    snapshot = bench.workspace.snapshot(run_id, step)
    value = TrainingRecord.parse(snapshot.read(RECORD)).held_out_loss(step)
    reason = (
        None if value is not None else "its held-out loss was not taken there"
    )  # a mere checkpoint before
    return Look(run_id=run_id, step=step, value=value, reason=reason)
