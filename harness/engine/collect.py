"""From the store to the tables of one sweep. Everything is read from files."""

import itertools
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from harness import results
from harness.config.plan.axes import param_label
from harness.config.plan.plan import Cell, Plan, ResolvedArm, Trial, expand
from harness.config.schema.metric import DiversityMetric, DriftMetric
from harness.config.schema.sweep import SweepConfig
from harness.engine.early_stopping import Decisions, as_decided, why_stopped
from harness.engine.events import Events
from harness.engine.stages.sampling import IMAGES, read_arrow
from harness.engine.stages.scoring import SCORES, listed, metric_folder
from harness.errors import ArtifactError
from harness.results import tables
from harness.results.embeddings import Embedded, diversity, drift
from harness.results.ledger import record
from harness.results.study import Study
from harness.results.summary import select_best, summarise
from harness.store.artifact import read_json, versions
from harness.store.training_record import RECORD, TrainingRecord
from harness.store.workspace import PLAN, Workspace

FEWEST_PATTERNS = 100  # that a sweep may ask for
TESTED = ("p_value", "p_adjusted", "verdict", "verdict_reason", "prompts_to_decide")  # columns of the summary
NOT_TRAINED: dict[str, Any] = dict.fromkeys(
    ("adapter_path", "final_loss", "validation_loss", "train_seconds")
)


def collect(plan: Plan, workspace: Workspace, reasons: Mapping[str, str], events: Events) -> results.Results:
    """Write the tables of a sweep and read them back.

    `reasons` maps the id of a run or arm that failed in this call to one line; a trial without results
    and without a reason is `missing`. Raises ArtifactError where something it reads is damaged.
    """
    sweep = plan.sweep
    trials, arms, images, scores, summary = _frames(plan, workspace, reasons)
    best = select_best(summary, sweep.analysis)
    trials["selected"] = trials["trial_id"] == best
    asked = _asked_for(plan, images, best)
    if not asked.all():  # test images that another sweep of the store confirmed another trial with
        images = images[asked]
        scores = scores[scores["image_id"].isin(images["image_id"])]
        summary = summarise(trials, arms, images, scores, analysis=sweep.analysis, metrics=sweep.metrics)
    folder = workspace.sweep(sweep.name)
    about = described(sweep, reasons, events.rows(), seconds=events.seconds)
    frames = {"trials": trials, "arms": arms, "images": images, "scores": scores, "summary": summary}
    about["looks"] = record(workspace, Study(_in_memory(about, frames, workspace)))
    tables.write(folder, **frames, sweep=about)
    workspace.upload_sweep(sweep.name, tables.FILES)
    return results.load(folder)


def begun(folder: Path) -> SweepConfig | None:
    """The sweep of a folder as it was begun; None where none was. Raises ArtifactError for a damaged plan."""
    try:
        return SweepConfig.model_validate(read_json(folder / PLAN))
    except OSError:
        return None
    except ValueError as error:
        raise ArtifactError(
            f"{folder / PLAN} is damaged or of another version; run the sweep again"
        ) from error


def so_far(workspace: Workspace, name: str) -> results.Results | None:
    """The tables of a sweep that is being run, in memory, by its `plan.json`; None where it has none.

    Nothing is selected or tested: no trial is `selected`, every p and verdict is null, `finished_at` is None.
    Raises ArtifactError where something it reads is damaged, or was written by another version.
    """
    sweep = begun(workspace.fetch_sweep(name))
    if sweep is None:
        return None
    plan = expand(sweep)
    few = sweep.analysis.model_copy(update={"resamples": FEWEST_PATTERNS})  # nothing is tested
    cheap = replace(plan, sweep=sweep.model_copy(update={"analysis": few}))
    trials, arms, images, scores, summary = _frames(cheap, workspace, {})
    dev = images["split"] == "dev"
    images, scores = images[dev], scores[scores["image_id"].isin(images.loc[dev, "image_id"])]
    frames = {
        "trials": trials.assign(selected=False),
        "arms": arms,
        "images": images,
        "scores": scores,
        "summary": summary[summary["split"] == "dev"].assign(**dict.fromkeys(TESTED)),
    }
    about = described(sweep, {}, [], seconds=0.0) | {"finished_at": None, "seconds": None}
    return _in_memory(about, frames, workspace)


def _in_memory(
    about: dict[str, Any], frames: Mapping[str, pd.DataFrame], workspace: Workspace
) -> results.Results:
    """The tables as `results.load` would read them."""
    typed = {table: tables.typed(frame, tables.SCHEMAS[table]) for table, frame in frames.items()}
    return results.Results(sweep=about, workspace=workspace, **typed)


def _frames(
    plan: Plan, workspace: Workspace, reasons: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Trials, arms, images, scores and summary of what the store has."""
    sweep, decisions = plan.sweep, Decisions(plan.sweep, workspace)
    kept = as_decided(plan, decisions)  # images of stopped trials that other sweeps made do not count
    with listed(plan, workspace):
        images, blank = _images(kept, workspace), _of_one_colour(kept, workspace)
        broken = _broken_arms(plan, images, blank, reasons)
        trials = _trials(plan, workspace, images, broken, reasons, decisions)
        arms = _arms(plan, broken)
        scores = _valid(_scores(kept, workspace, images, arms), images, blank, broken)
    summary = summarise(trials, arms, images, scores, analysis=sweep.analysis, metrics=sweep.metrics)
    return trials, arms, images, scores, summary


def described(
    sweep: SweepConfig, reasons: Mapping[str, str], events: Sequence[Mapping[str, Any]], *, seconds: float
) -> dict[str, Any]:
    """`sweep.json`: the sweep as it was read, and the facts about its run. `seconds`: `Events.seconds`."""
    facts = {
        "versions": dict(versions()),
        "host": platform.node(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "failures": dict(reasons),
        "events": list(events),
        "looks": [],
    }
    assert tuple(facts) == tables.FACTS
    return {**sweep.model_dump(mode="json"), **facts}


def _asked_for(plan: Plan, images: pd.DataFrame, best: str | None) -> pd.Series:
    """Dev images, and test images of the controls and of the selected trial: true for each of them."""
    confirmed = {arm.arm_id for arm in plan.control_arms}
    confirmed |= {arm_id for trial in plan.trials if trial.trial_id == best for arm_id in trial.arms.values()}
    return (images["split"] == "dev") | images["arm_id"].isin(confirmed)


def _arms(plan: Plan, broken: Mapping[str, str]) -> pd.DataFrame:
    """Each trial's arms; of the selected trial also those for which no matching guidance is found."""
    rows = []
    for trial, arm in itertools.product(plan.trials, plan.sweep.arms):
        arm_id, match = trial.arms.get(arm.name), arm.match
        given_up = match is not None and match.trial == trial.trial_id and match.missing is not None
        if arm_id is None and not given_up:
            continue
        rows.append(
            {
                "trial_id": trial.trial_id,
                "arm": arm.name,
                "arm_id": arm_id,
                "is_control": arm.is_control,
                "guidance": None if arm_id is None else plan.arms[arm_id].guidance,
                "reason": f"not reachable: {match.missing}"
                if match is not None and given_up
                else broken.get(str(arm_id)),
            }
        )
    return pd.DataFrame(rows)


def _broken_arms(
    plan: Plan, images: pd.DataFrame, blank: frozenset[str], reasons: Mapping[str, str]
) -> dict[str, str]:
    """Why an arm with a trial's own adapter is not in the running, by its id; the trial's other arms are.

    An arm that generates an image of one colour would look better without it, so all of it is left out.
    """
    made = set(images["image_id"])
    broken = {}
    for arm_id in _owners(plan):
        cells = plan.cells(plan.arms[arm_id], "dev")
        nothing = sum(cell.image_id in blank for cell in cells)
        if nothing:
            broken[arm_id] = f"{nothing} of {len(cells)} dev images are of one colour"
        elif arm_id in reasons and not all(cell.image_id in made for cell in cells):
            broken[arm_id] = reasons[arm_id]
    return broken


def _images(plan: Plan, workspace: Workspace) -> pd.DataFrame:
    """Images that the sweep asks for, each once; a store that other sweeps share may hold more.

    Two sweeps at once may generate an image twice, in chunks of other sizes.
    """
    chunks = [chunk for arm_id in plan.arms for chunk in workspace.image_chunks(arm_id)]
    if not chunks:
        return tables.empty("images")
    parts = [read_arrow(chunk, IMAGES) for chunk in chunks]
    folders = [
        workspace.relative(c.path) for c, part in zip(chunks, parts, strict=True) for _ in range(len(part))
    ]
    found: pd.DataFrame = pa.concat_tables(parts).to_pandas()
    found["path"] = [f"{folder}/{name}" for folder, name in zip(folders, found["path"], strict=True)]
    wanted, owner = _wanted(plan), _owners(plan)
    found = found[found["image_id"].isin(list(wanted))].drop_duplicates("image_id", ignore_index=True)
    cells = [wanted[image_id] for image_id in found["image_id"]]
    return found.assign(
        trial_id=pd.Series([owner.get(cell.arm_id) for cell in cells], dtype=object),
        arm=[plan.arms[cell.arm_id].arm for cell in cells],
        # A prompt's split and tags belong to the sweep, not to the image.
        split=[cell.split for cell in cells],
        tags=pd.Series([list(cell.tags) for cell in cells], dtype=object),
    )


def _wanted(plan: Plan) -> dict[str, Cell]:
    """Every image that any arm may have, by its id."""
    every = (plan.cells(arm, split) for arm in plan.arms.values() for split in ("dev", "test"))
    return {cell.image_id: cell for cells in every for cell in cells}


def _owners(plan: Plan) -> dict[str, str]:
    """The trial of each arm in which a trial's own adapter acts."""
    control = {arm.name: arm.is_control for arm in plan.sweep.arms}
    return {
        arm_id: trial.trial_id
        for trial in plan.trials
        for arm, arm_id in trial.arms.items()
        if not control[arm]
    }


def _scores(plan: Plan, workspace: Workspace, images: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Of these images, under the names that this sweep has for its metrics; the store has their kinds."""
    chunks = [chunk for arm_id in plan.arms for chunk in workspace.image_chunks(arm_id)]
    parts = []
    for metric in plan.sweep.metrics:
        found = (workspace.scores(metric_folder(metric), chunk) for chunk in chunks)
        stored = [read_arrow(artifact, SCORES) for artifact in found if artifact.done]
        if not stored:
            continue
        # A column without any value has no type of its own.
        scored = pa.concat_tables(stored, promote_options="permissive")
        scored = scored.filter(pc.is_in(scored["image_id"], pa.array(images["image_id"])))
        if isinstance(metric, DriftMetric | DiversityMetric):
            embedded = scored.to_pandas().drop_duplicates("image_id", ignore_index=True)
            scored = _distances(metric, embedded, images, arms, plan.sweep.analysis.control)
        column = scored.schema.get_field_index("metric")
        parts.append(scored.set_column(column, "metric", pa.array([metric.name] * len(scored), pa.string())))
    if not parts:
        return tables.empty("scores")
    frame: pd.DataFrame = pa.concat_tables(parts, promote_options="permissive").to_pandas()
    return frame.drop_duplicates(["image_id", "metric"], ignore_index=True)


def _distances(
    metric: DriftMetric | DiversityMetric,
    stored: pd.DataFrame,
    images: pd.DataFrame,
    arms: pd.DataFrame,
    control: str,
) -> pa.Table:
    """Scores from embeddings."""
    embedded = Embedded.of(stored)
    images = images[images["image_id"].isin(stored["image_id"])]
    if isinstance(metric, DriftMetric):
        found = drift(embedded, images, arms, control=metric.control or control)
    else:
        found = diversity(embedded, images)
    about = stored[["image_id", "metric_version", "weights_hash"]]
    found = found.merge(about, on="image_id", how="left").assign(metric=metric.name, prompt_truncated=None)
    return tables.to_arrow(found.astype({"value": "float64"}), tables.SCORES)


def _of_one_colour(plan: Plan, workspace: Workspace) -> frozenset[str]:
    """Images that show nothing: something went wrong, as where half precision overflows."""
    chunks = (chunk for arm_id in plan.arms for chunk in workspace.image_chunks(arm_id))
    return frozenset(name for chunk in chunks for name in chunk.manifest()["facts"]["made"]["one_colour"])


def _valid(
    scores: pd.DataFrame, images: pd.DataFrame, blank: frozenset[str], broken: Mapping[str, str]
) -> pd.DataFrame:
    """Scores that count. Images that show nothing, and all of a broken arm, have a reason instead."""
    of_arm = images.set_index("image_id")["arm_id"].map(broken)
    why = "its arm failed: " + scores["image_id"].map(of_arm).astype("str")
    why = why.mask(scores["image_id"].isin(blank), "the image is of one colour")
    return scores.assign(
        value=scores["value"].where(why.isna()), reason=scores["reason"].where(why.isna(), why)
    )


def _trials(
    plan: Plan,
    workspace: Workspace,
    images: pd.DataFrame,
    broken: Mapping[str, str],
    reasons: Mapping[str, str],
    decisions: Decisions,
) -> pd.DataFrame:
    drawn = images.groupby("arm_id").agg(count=("split", lambda split: int((split == "dev").sum())))["count"]
    counts = dict(drawn)
    rows = [_trial_row(plan, workspace, trial, counts, broken, reasons) for trial in plan.trials]
    for trial, row in zip(plan.trials, rows, strict=True):
        result = None if trial.run_id is None else decisions.stops.get(trial.run_id)
        if result is not None and result.step < trial.config.trained.training.steps:
            row |= {"status": "stopped", "reason": why_stopped(decisions.scheduler, result), **NOT_TRAINED}
    frame = pd.DataFrame(rows)
    for axis in plan.sweep.axes:  # else pandas makes 2.0 of 2 where another trial has null
        frame[axis] = pd.Series([row[axis] for row in rows], dtype=object)
    return frame


def _trial_row(
    plan: Plan,
    workspace: Workspace,
    trial: Trial,
    drawn: dict[Any, int],
    broken: Mapping[str, str],
    reasons: Mapping[str, str],
) -> dict[str, Any]:
    training = _training_columns(workspace, trial)
    own = [plan.arms[d] for name, d in trial.arms.items() if not _is_control(plan, name)]
    is_there = trial.run_id is None or training["adapter_path"] is not None
    made = is_there and all(
        arm.arm_id in broken or drawn.get(arm.arm_id, 0) == len(plan.cells(arm, "dev")) for arm in own
    )
    complete = made and not all(arm.arm_id in broken for arm in own)
    reason = None if complete else _reason(trial, own, {**broken, **reasons})
    return {
        "trial_id": trial.trial_id,
        "index": trial.index,
        "status": "completed" if complete else "failed" if reason else "missing",
        "reason": None if complete else reason or "not run yet",
        "run_id": trial.run_id,
        "dataset_id": None if trial.run_id is None else plan.runs[trial.run_id].dataset.dataset_id,
        **{name: param_label(value) for name, value in trial.params.items()},
        "config": json.dumps(trial.config.model_dump(mode="json"), sort_keys=True),
        **training,
    }


def _training_columns(workspace: Workspace, trial: Trial) -> dict[str, Any]:
    """None throughout where it is not trained yet, or where its adapter is a file."""
    if trial.run_id is None:
        return NOT_TRAINED
    steps = trial.config.trained.training.steps
    checkpoint = workspace.checkpoint(trial.run_id, steps)
    if not checkpoint.done:
        return NOT_TRAINED
    record = TrainingRecord.parse(checkpoint.read(RECORD))
    return {
        "adapter_path": workspace.relative(checkpoint.path),
        "final_loss": record.final_loss,
        "validation_loss": record.held_out_loss(steps),
        "train_seconds": _train_seconds(workspace, trial.run_id, steps),
    }


def _is_control(plan: Plan, arm: str) -> bool:
    return next(a.is_control for a in plan.sweep.arms if a.name == arm)


def _reason(trial: Trial, arms: list[ResolvedArm], reasons: Mapping[str, str]) -> str | None:
    for identity in (trial.run_id, *(arm.arm_id for arm in arms)):
        if identity is not None and identity in reasons:
            return reasons[identity]
    return None


def _train_seconds(workspace: Workspace, run_id: str, steps: int) -> float | None:
    """Seconds of training up to a checkpoint, over the calls it took; work lost to a kill is not in it.

    None if a checkpoint that it was trained on from is gone, as a damaged one is.
    """
    total, step = 0.0, steps
    while step > 0:
        checkpoint = workspace.checkpoint(run_id, step)
        if not checkpoint.done:
            return None
        facts = checkpoint.manifest()["facts"]
        total += facts["train_seconds"]
        step = facts["from_step"]
    return total
