"""Carrying a small sweep out under an executor, and what two such calls must agree in."""

import threading
from collections import Counter
from pathlib import Path

import pandas as pd

from harness.config.plan.plan import Plan
from harness.engine.executors import ExecutorName, make_executor
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.stages.context import Context
from harness.results import Results
from harness.store.workspace import Workspace


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
    ctx = Context(plan=plan, workspace=Workspace(root), report=Display().report)
    with make_executor(name) as executor:
        return run_sweep(ctx, executor, announce=lambda *_: None, publish=lambda _: True)


def assert_same(these: Results, those: Results) -> None:
    """The same images, byte for byte, and the same scores."""
    keys = ["image_id"]
    these_images, those_images = (r.images.sort_values(keys, ignore_index=True) for r in (these, those))
    pd.testing.assert_series_equal(these_images["sha256"], those_images["sha256"])
    keys = ["image_id", "metric"]
    these_scores, those_scores = (r.scores.sort_values(keys, ignore_index=True) for r in (these, those))
    pd.testing.assert_frame_equal(these_scores, those_scores, rtol=1e-6, atol=1e-6)
