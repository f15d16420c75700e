"""A broken arm is left out with its reason; its trial and the trial's other arms are not."""

import shutil
from pathlib import Path

import pandas as pd

from benchmarks.many import QUICKSTART, overrides
from benchmarks.pretend import carry_out
from harness.config.loading.load import load_sweep
from harness.config.plan.plan import Plan, expand
from harness.engine.collect import _broken_arms, _valid
from harness.engine.stages.sampling import image_ids
from harness.store.workspace import Workspace
from tests.reporting.report import example


def plan_with_two_arms() -> Plan:
    arm = {"name": "strong", "negative": "wrong", "adapters": [{"scale": 2.0}]}
    return expand(example.config(ranks=(4,), steps=(100,), n_prompts=8, arms=[arm]))


def test_an_arm_with_an_image_of_one_colour_is_left_out_and_no_other() -> None:
    plan = plan_with_two_arms()
    trial = plan.trials[0]
    arms = [plan.arms[trial.arms[name]] for name in ("wrong_lora", "strong")]
    cells = [cell for arm in arms for cell in plan.cells(arm, "dev")]
    images = pd.DataFrame([{"image_id": cell.image_id, "arm_id": cell.arm_id} for cell in cells])
    blank = frozenset([plan.cells(arms[1], "dev")[3].image_id])
    broken = _broken_arms(plan, images, blank, {})
    assert broken == {arms[1].arm_id: "1 of 8 dev images are of one colour"}
    scores = images.assign(value=1.0, reason=None)
    valid = _valid(scores, images, blank, broken)
    of_broken = images["arm_id"] == arms[1].arm_id
    assert valid.loc[~of_broken, "value"].eq(1.0).all() and valid.loc[of_broken, "value"].isna().all()
    reasons = set(valid.loc[of_broken, "reason"])
    assert reasons == {"the image is of one colour", f"its arm failed: {broken[arms[1].arm_id]}"}


def test_an_arm_whose_images_could_not_be_made_is_left_out() -> None:
    plan = plan_with_two_arms()
    lost = plan.trials[0].arms["strong"]
    images = pd.DataFrame({"image_id": pd.Series(dtype=str), "arm_id": pd.Series(dtype=str)})
    assert _broken_arms(plan, images, frozenset(), {lost: "out of memory"}) == {lost: "out of memory"}


def test_an_image_that_two_sweeps_generated_at_once_counts_once(tmp_path: Path) -> None:
    """They cut their images into other chunks, so both copies stay in the store."""
    alone, other = (
        expand(
            load_sweep(QUICKSTART, [*overrides(name=name, seeds=1, prompts=prompts), "axes.adapter.rank=[2]"])
        )
        for name, prompts in (("alone", 2), ("other", 3))
    )
    undisturbed = carry_out(alone, Workspace(tmp_path / "w")).results
    carry_out(other, Workspace(tmp_path / "v"))
    for kind in ("images", "scores"):
        shutil.copytree(tmp_path / "v" / kind, tmp_path / "w" / kind, dirs_exist_ok=True)
    chunks = Workspace(tmp_path / "w")
    ids = [name for arm in alone.arms for chunk in chunks.image_chunks(arm) for name in image_ids(chunk)]
    assert len(ids) > len(set(ids)), "some are there twice"
    (tmp_path / "w" / "sweeps" / "alone" / "finished.json").unlink()
    again = carry_out(alone, Workspace(tmp_path / "w")).results
    assert again.images["image_id"].is_unique
    assert not again.scores.duplicated(["image_id", "metric"]).any()
    pd.testing.assert_series_equal(again.summary["n_pairs"], undisturbed.summary["n_pairs"])
