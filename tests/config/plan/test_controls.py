"""What `controls` adds to a sweep's arms, and how a sham follows the trial's own recipe."""

from pathlib import Path
from typing import Any

import pytest

from harness.config.plan.controls import with_controls
from harness.config.plan.plan import Plan, Trial, expand
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.evaluation import ArmConfig, Controls, SamplerConfig
from harness.config.schema.recipe import GOOD_WORDS, KeywordsRecipe, PlainRecipe, RecipeConfig
from harness.errors import ConfigError
from tests.config.example import load

SAMPLER = SamplerConfig(guidance=5)
LORA: dict[str, Any] = {"name": "wrong_lora", "negative": "wrong", "adapters": [{}]}
SUBJECT = {"recipe": {"kind": "plain", "prompts": ["an ogre"]}, "branch": "both"}
KEYWORDS = {"kind": "keywords", "keywords": ["blurry", "ugly"], "guidance": [8, 12], "steps": 30, "seed": 7}
DEGRADE = {
    "kind": "degrade",
    "prompts": ["a cat"],
    "count": 6,
    "guidance": 4,
    "seed": 3,
    "degradations": ["blur"],
}


def added(controls: Controls, *arms: dict[str, Any]) -> dict[str, ArmConfig]:
    given = [ArmConfig.model_validate(arm) for arm in arms]
    return {arm.name: arm for arm in with_controls(given, controls, SAMPLER) if arm.added}


def test_each_preset_has_the_arms_of_the_one_before() -> None:
    assert list(added("minimal", LORA)) == ["baseline", "placebo"]
    assert list(added("standard", LORA)) == ["baseline", "placebo", "sham"]
    full = added("full", LORA)
    assert list(full) == ["baseline", "placebo", "sham", "neon", "autoguidance"]
    assert [arm.is_control for arm in full.values()] == [True, True, True, False, False]
    (neon,), (weak,) = full["neon"].adapters, full["autoguidance"].adapters
    assert (neon.scale, neon.branch, full["neon"].negative) == (-1, "both", "")
    assert (weak.scale, weak.branch, full["autoguidance"].negative) == (1, "negative", "{prompt}")
    assert full["placebo"].negative == full["sham"].negative == "wrong"
    assert full["baseline"].negative == "" and not full["baseline"].adapters


def test_controls_stand_before_the_arms_and_rivals_after() -> None:
    arms = with_controls([ArmConfig.model_validate(LORA)], "full", SAMPLER)
    names = [arm.name for arm in arms]
    assert names == ["baseline", "placebo", "sham", "wrong_lora", "neon", "autoguidance"]


def test_a_placebo_has_the_guidance_of_its_arm() -> None:
    high = {**LORA, "name": "high", "guidance": 9}
    given = {**LORA, "name": "given", "guidance": 5}
    brief = {**LORA, "name": "brief", "guidance_interval": [0, 0.5]}
    found = added("minimal", LORA, given, high, brief)
    assert list(found) == ["baseline", "placebo", "placebo-guidance-9", "placebo-brief"]
    assert found["placebo-guidance-9"].guidance == 9
    assert found["placebo-guidance-9"].family == "placebo"
    assert found["placebo-guidance-9"].params == {"guidance": 9}
    assert found["placebo-brief"].guidance_interval == (0.0, 0.5)
    neon = {"name": "plain", "guidance": 9, "adapters": [{"branch": "both"}]}
    assert list(added("minimal", neon)) == ["baseline", "baseline-guidance-9"]


def test_a_placebo_keeps_the_arms_other_adapters() -> None:
    arm = {**LORA, "adapters": [SUBJECT, {"branch": "both"}], "merge": {"method": "linear"}}
    found = added("full", arm)
    assert [adapter.is_trained_apart for adapter in found["placebo"].adapters] == [True]
    assert found["placebo"].merge is None and found["sham"].merge is not None
    assert [adapter.sham is not None for adapter in found["sham"].adapters] == [False, True]
    assert [adapter.scale for adapter in found["neon"].adapters] == [1, -1]


def test_the_sham_acts_as_the_arm_at_scale_1() -> None:
    curve = [{**LORA, "name": f"x{s}", "adapters": [{"scale": s, "branch": "both"}]} for s in (0.5, 1, 2)]
    (sham,) = added("standard", *curve)["sham"].adapters
    assert (sham.scale, sham.branch) == (1, "both")


def test_an_arm_given_by_hand_stays() -> None:
    word = {"name": "word", "negative": "wrong"}
    sham = {**LORA, "name": "sham", "adapters": [{"sham": {"keywords": ["clean"]}}]}
    neon = {"name": "minus", "adapters": [{"scale": -1, "branch": "both"}]}
    assert list(added("full", word, sham, LORA, neon)) == ["baseline", "autoguidance"]
    assert list(added("standard", word, {**sham, "adapters": [SUBJECT]}, LORA)) == ["baseline"]
    assert list(added("standard", word, {**sham, "name": "good"}, LORA)) == ["baseline", "sham"]
    high = {**LORA, "name": "high", "guidance": 9}
    assert list(added("minimal", word, LORA, high)) == ["baseline", "placebo-guidance-9"]


def test_another_arm_of_an_added_name_is_refused(tmp_path: Path) -> None:
    arms = [{"name": "placebo", "negative": "bad"}, LORA]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, arms=arms, controls="minimal")
    assert "x.yaml: arms.placebo: differs from the arm of this name that controls: minimal adds" in str(
        caught.value
    )
    with pytest.raises(ConfigError, match=r'controls: "most" is not allowed: must be'):
        load(tmp_path, arms=[{"name": "placebo", "negative": "wrong"}, LORA], controls="most")


def test_a_sweep_with_controls_is_the_sweep_with_the_arms_written_out(tmp_path: Path) -> None:
    sham = {**LORA, "name": "sham", "adapters": [{"sham": {}}]}
    written = [{"name": "baseline"}, {"name": "placebo", "negative": "wrong"}, sham, LORA]
    preset, by_hand = load(tmp_path, arms=[LORA], controls="standard"), load(tmp_path, arms=written)
    assert expand(preset).arms == expand(by_hand).arms
    assert [arm.name for arm in preset.arms if arm.added] == ["baseline", "placebo", "sham"]


def sham_recipes(plan: Plan) -> dict[str, RecipeConfig]:
    """The recipe of the sham of each trial, by the kind of the trial's own."""
    found: dict[str, RecipeConfig] = {}
    for trial in plan.trials:
        run_id = plan.arms[trial.arms["sham"]].adapters[0].run_id
        assert run_id is not None
        found[trial.config.trained.recipe.kind] = plan.runs[run_id].dataset.recipe
        check_trained_alike(plan, trial, run_id)
    return found


def check_trained_alike(plan: Plan, trial: Trial, run_id: str) -> None:
    assert trial.run_id is not None
    own, sham = plan.runs[trial.run_id], plan.runs[run_id]
    assert (own.adapter, own.training, own.checkpoints) == (sham.adapter, sham.training, sham.checkpoints)
    assert own.dataset.recipe.count == sham.dataset.recipe.count


def test_a_sham_follows_each_trials_recipe_and_settings(tmp_path: Path) -> None:
    plan = expand(
        load(
            tmp_path,
            recipe=None,
            axes={"recipe": [KEYWORDS, DEGRADE], "adapter.rank": [2, 8], "training.seed": [4, 5]},
            arms=[LORA],
            controls="standard",
        )
    )
    found = sham_recipes(plan)
    assert found["keywords"] == KeywordsRecipe.model_validate({**KEYWORDS, "keywords": GOOD_WORDS[:2]})
    clean = {key: value for key, value in DEGRADE.items() if key not in ("kind", "degradations")}
    assert found["degrade"] == PlainRecipe.model_validate(clean)
    assert len(plan.runs) == 2 * len(plan.trials) == 16
    assert all(isinstance(run.adapter, LowRankAdapter) for run in plan.runs.values())


PLAIN = {"kind": "plain", "prompts": ["a cat"]}
FEW = {"sham": {"keywords": ["clean"]}}


@pytest.mark.parametrize(
    ("changes", "adapter", "line"),
    [
        ({}, FEW, ".sham: 1 of the 2 words for good that the recipe's keywords need"),
        ({"recipe": PLAIN}, {"sham": {}}, ".sham: a plain recipe has no clean twin"),
        ({}, {"sham": {}, "recipe": DEGRADE}, ": give recipe or sham (an adapter to train), file or hub"),
        ({}, {"sham": {}, "training": {"steps": 3}}, ": a sham copies adapter and training; remove them"),
        (
            {},
            {"sham": {"kewords": ["a"]}},
            ".sham.kewords is not known; did you mean arms[1].adapters[0].sham.k",
        ),
    ],
)
def test_a_sham_that_cannot_be_is_one_line(
    tmp_path: Path, changes: dict[str, Any], adapter: dict[str, Any], line: str
) -> None:
    arms = [{"name": "placebo", "negative": "wrong"}, {**LORA, "name": "sham", "adapters": [adapter]}, LORA]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, arms=arms, **changes)
    said = str(caught.value).removeprefix(str(tmp_path))
    assert line in said and "adapters[0]" in said
    assert len(said) < 300 and "\n" not in said


def test_the_words_of_a_sham_are_checked_like_a_recipes(tmp_path: Path) -> None:
    sham = {**LORA, "name": "sham", "adapters": [{"sham": {"keywords": ["[sharp]", "clean"]}}]}
    with pytest.raises(ConfigError, match=r"arms.sham.adapters\[0\].sham: '\[sharp\], clean'"):
        load(tmp_path, arms=[LORA, sham], controls="minimal")
