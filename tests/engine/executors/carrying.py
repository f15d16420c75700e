"""Carrying a small sweep out under an executor, and what two such calls must agree in."""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.config.plan.plan import Plan
from harness.engine.executors import ExecutorName, make_executor
from harness.engine.outcomes import Outcome
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.queue import Executor, Phase, Queue, Story
from harness.engine.stages.context import Context
from harness.engine.tasks import Task
from harness.results import Results


class Display:
    """Counts what is reported; like a live display it holds a lock, so it cannot leave its process."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self.counts: Counter[str] = Counter()
        self.lock = threading.RLock()

    def report(self, kind: str, count: int) -> None:
        """Count."""
        with self.lock:
            self.counts[kind] += count


def carry_out(plan: Plan, root: Path | str, name: ExecutorName) -> SweepRun:
    """The sweep from nothing to its tables."""
    ctx = Context.of(plan, root, Display().report)
    with make_executor(name) as executor:
        return run_sweep(plan, ctx, executor, announce=lambda *_: None, publish=lambda _: True)


def run_tasks(tasks: Sequence[Task], ctx: Context, executor: Executor) -> list[Outcome]:
    """The outcomes of some tasks, in the order in which they ended."""
    found: list[Outcome] = []

    def story() -> Story:
        found.extend((yield Phase(tasks=tasks)))
        return None

    executor.carry_out(Queue(story(), ctx.stop), ctx)
    return found


TOLERANCE = 0.1  # of scores: batches and packs of other sizes round otherwise, which a random base amplifies


def assert_same(these: Results, those: Results) -> None:
    """The same dev images from the same latents, and the same scores up to rounding.

    Which trial is confirmed may depend on the last digit of a random base's scores.
    """
    keys = ["image_id", "latent_hash"]
    dev = [
        r.images.loc[r.images["split"] == "dev", keys].sort_values(keys, ignore_index=True)
        for r in (these, those)
    ]
    pd.testing.assert_frame_equal(dev[0], dev[1])
    assert len(dev[0]) > 0
    assert assert_same_scores(these, those) >= len(dev[0])


def assert_same_scores(these: Results, those: Results) -> int:
    """The images that both have, with the same scores up to rounding: how many."""
    keys = ["image_id", "metric"]
    both = these.scores.merge(those.scores, on=keys, suffixes=("", "_of_those"))
    for column in ("value", "reason", "weights_hash"):
        found, expected = both[column], both[f"{column}_of_those"]
        pd.testing.assert_series_equal(found, expected, check_names=False, rtol=TOLERANCE, atol=TOLERANCE)
    return int(both["image_id"].nunique())
