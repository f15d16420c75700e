"""A broken arm is left out with its reason; its trial and the trial's other arms are not."""

import pandas as pd

from harness.config.plan.plan import Plan, expand
from harness.engine.collect import _broken_arms, _valid
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
