"""Which training runs share the passes of one base, and in which packs."""

import math
from collections.abc import Sequence
from itertools import pairwise

from harness.config.plan.plan import Plan, TrainingRun
from harness.config.schema.adapter import LowRankAdapter, TextualInversion
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.model import ModelConfig

MOST_TOGETHER = 16  # so that a lost worker costs the time of no more


def trained_alone(run: TrainingRun) -> str | None:
    """Why a run is not trained beside others; None if it can be."""
    if isinstance(run.adapter, TextualInversion):
        return "textual inversion learns words, which stand in the text encoders for all rows"
    if not isinstance(run.adapter, LowRankAdapter):
        return f"{run.adapter.kind} is trained by PEFT's own layers, which act on all rows"
    if run.training.optimizer.kind == "adamw_8bit":
        return "adamw_8bit keeps its moments in blocks, which a pack's padding would shift"
    return None


def why_alone(run: TrainingRun, compute: ComputeConfig) -> str:
    """Why a run has a pack to itself."""
    if compute.pack in ("off", 1):
        return "compute.pack is off"
    if compute.pack == "auto" and compute.training_workers > 1:
        return "compute lets several processes train one run"
    return trained_alone(run) or "no other of its base is left, or each has a worker"


def planned_packs(plan: Plan, *, workers: int = 1) -> list[list[TrainingRun]]:
    """The runs that a task trains: where it is left open, enough tasks for every worker to have one.

    How many of them go through the base together is the worker's to find out.
    """
    compute, runs = plan.sweep.compute, list(plan.runs.values())
    match compute.pack:
        case "off":
            return packs(runs, 1)
        case "auto":
            several = compute.training_workers > 1  # a run has several processes, and not the other way round
            return packs(runs, 1 if several else min(MOST_TOGETHER, math.ceil(len(runs) / workers)))
        case number:
            return packs(runs, number)


def packs(runs: Sequence[TrainingRun], size: int) -> list[list[TrainingRun]]:
    """The runs in packs of at most `size`, those first that are likely to take longest; alone, as they come.

    All of a pack have one base. Ranks are kept together, because a pack is as wide as its highest rank, and
    so are lengths, because the last run of a pack has the base for itself.
    """
    if size == 1:
        return [[run] for run in runs]
    by_base: dict[ModelConfig, list[TrainingRun]] = {}
    found: list[list[TrainingRun]] = []
    for run in runs:
        if trained_alone(run):
            found.append([run])
        else:
            by_base.setdefault(run.dataset.model, []).append(run)
    for together in by_base.values():
        found += _evenly(sorted(together, key=_likeness, reverse=True), math.ceil(len(together) / size))
    return sorted(found, key=_work, reverse=True)


def _likeness(run: TrainingRun) -> tuple[int, int]:
    assert isinstance(run.adapter, LowRankAdapter)
    return run.adapter.rank, rows_per_step(run) * run.checkpoints[-1]


def rows_per_step(run: TrainingRun) -> int:
    """Images of one optimizer step, those of the class included."""
    training = run.training
    images = training.batch_size * training.gradient_accumulation
    return images if training.prior is None else 2 * images


def _work(pack: Sequence[TrainingRun]) -> int:
    return sum(rows_per_step(run) * run.checkpoints[-1] for run in pack)


def _evenly(runs: Sequence[TrainingRun], parts: int) -> list[list[TrainingRun]]:
    bounds = [len(runs) * part // parts for part in range(parts + 1)]
    return [list(runs[start:end]) for start, end in pairwise(bounds)]
