"""A sweep that trains in packs is the sweep that trains one run after the other."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config.plan.plan import Plan
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.model import SdxlModel
from harness.engine.executors.local import LocalExecutor
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.queue import Executor
from harness.engine.stages.context import Context
from harness.engine.tasks import TrainingTask, Wish, missing_tasks
from harness.store.workspace import Workspace
from tests.sweeps.small import small_plan

AXES = {"adapter.rank": [2, 4], "training.learning_rate": [0.01, 0.02]}


def carry_out(plan: Plan, root: Path, executor: Executor) -> SweepRun:
    ctx = Context.of(plan, root, lambda *_: None)
    return run_sweep(plan, ctx, executor, announce=lambda *_: None, publish=lambda _: True)


def packed(plan: Plan, pack: Any) -> Plan:
    compute = ComputeConfig(**{**plan.sweep.compute.model_dump(), "pack": pack})
    return replace(plan, sweep=plan.sweep.model_copy(update={"compute": compute}))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each set of adapters that was attached had."""
    from harness.diffusion.models.sdxl import Sdxl

    attach, sizes = Sdxl.attach, []

    def noted(self: Sdxl, fresh: Sequence[Any], **options: Any) -> Any:
        sizes.append(len(fresh))
        return attach(self, fresh, **options)

    monkeypatch.setattr(Sdxl, "attach", noted)
    return sizes


def rows(run: SweepRun) -> pd.DataFrame:
    """Of the dev split: which trial is confirmed on the other may be decided by rounding."""
    images = run.results.images.query("split == 'dev'").set_index("image_id").sort_index()
    return images[["arm_id", "latent_hash"]]


@pytest.mark.slow
def test_packed_or_not_a_sweep_gives_the_same_images_and_scores(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, trained: list[int]
) -> None:
    plan = small_plan(tmp_path, tiny_config, tiny_clip, axes=AXES)
    one_by_one = carry_out(packed(plan, "off"), tmp_path / "off", LocalExecutor())
    assert set(trained) == {1}
    trained.clear()
    together = carry_out(packed(plan, 4), tmp_path / "packed", LocalExecutor())
    assert max(trained) == 4
    images = [rows(run) for run in (one_by_one, together)]
    pd.testing.assert_frame_equal(images[0], images[1])
    # A network of random weights, at high rates, makes much of rounding: test_packing.py is stricter.
    scores = [
        run.results.scores.set_index(["image_id", "metric"])["value"].sort_index().loc[images[0].index]
        for run in (one_by_one, together)
    ]
    pd.testing.assert_series_equal(scores[0], scores[1], rtol=0.1)
    losses = [run.results.trials["final_loss"] for run in (one_by_one, together)]
    pd.testing.assert_series_equal(losses[0], losses[1], rtol=1e-2)


def test_a_run_of_a_pack_that_fails_is_one_row_and_the_pack_goes_on(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    axes = {"training.learning_rate": [0.01, 1e30]}
    plan = small_plan(tmp_path, tiny_config, tiny_clip, axes=axes, training={"steps": 4, "batch_size": 2})
    run = carry_out(packed(plan, 8), tmp_path / "w", LocalExecutor())
    good, bad = run.results.trials.sort_values("training.learning_rate").to_dict("records")
    assert good["status"] == "completed" and pd.isna(good["reason"])
    assert bad["status"] == "failed" and "learning rate 1e+30" in bad["reason"]
    (failed,) = [one for one in run.outcomes if one.failed and not one.skipped]
    assert isinstance(failed.task, TrainingTask)
    assert bad["run_id"] in failed.reasons and good["run_id"] in {run.run_id for run in failed.task.runs}
    assert good["run_id"] not in failed.reasons


def test_packs_left_open_are_one_for_each_worker(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    plan = packed(small_plan(tmp_path, tiny_config, tiny_clip, axes=AXES), "auto")
    sizes = {}
    for workers in (1, 2, 9):
        tasks = missing_tasks(Wish(plan=plan, workers=partial(int, workers)), Workspace(tmp_path / "w"))
        packs = [task for task in tasks if isinstance(task, TrainingTask)]
        assert Counter(run.run_id for task in packs for run in task.runs) == dict.fromkeys(plan.runs, 1)
        sizes[workers] = sorted(len(task.runs) for task in packs)
    runs = len(plan.runs)
    assert sizes == {1: [runs], 2: [runs // 2, runs - runs // 2], 9: [1] * runs}
