"""A sweep that trains in packs is the sweep that trains one run after the other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config.plan.plan import Plan
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.model import SdxlModel
from harness.engine.executors.local import LocalExecutor
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.stages.context import Context
from harness.engine.tasks import trial_tasks
from harness.engine.worker import Executor
from harness.store.workspace import Workspace
from tests.sweeps.small import small_plan

AXES = {"adapter.rank": [2, 4], "training.learning_rate": [0.01, 0.02]}


def carry_out(plan: Plan, root: Path, executor: Executor) -> SweepRun:
    ctx = Context(plan=plan, workspace=Workspace(root), report=lambda *_: None)
    return run_sweep(ctx, executor, announce=lambda *_: None, publish=lambda _: True)


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
    (failed,) = [outcome for outcome in run.outcomes if outcome.failed]
    assert bad["run_id"] in failed.reasons and good["run_id"] in failed.task.runs
    assert good["run_id"] not in failed.reasons


def test_packs_left_open_are_one_for_each_worker(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    plan = packed(small_plan(tmp_path, tiny_config, tiny_clip, axes=AXES), "auto")
    sizes = {
        workers: sorted(len(task.runs) for task in trial_tasks(plan, workers=workers))
        for workers in (1, 2, 9)
    }
    runs = len(plan.runs)
    assert sizes == {1: [runs], 2: [runs // 2, runs - runs // 2], 9: [1] * runs}
    drawn = [arm for task in trial_tasks(plan, workers=2) for arm in task.arms]
    assert sorted(drawn) == sorted(arm for task in trial_tasks(packed(plan, "off")) for arm in task.arms)
