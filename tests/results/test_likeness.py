"""Of which kind a control is; what differs is named by its dotted key."""

from typing import Any

import pytest

from harness.config.schema.evaluation import ArmConfig, SamplerConfig
from harness.config.schema.sweep import TrialConfig
from harness.results.likeness import Need, control_kind, deviations, differences, serves, unlike_own

PROMPTS = ["a cat", "a dog"]
KEYWORDS = {"kind": "keywords", "keywords": ["blurry", "ugly"], "guidance": [8, 12]}
DEGRADE = {"kind": "degrade", "prompts": PROMPTS, "count": 24, "degradations": ["blur"]}
PLAIN = {"kind": "plain", "prompts": PROMPTS, "count": 24}
TRAINING = {"prompt": "wrong", "steps": 100}
SAMPLER = SamplerConfig(guidance=2).model_dump(mode="json")


def arm(**changes: Any) -> dict[str, Any]:
    """An arm as sweep.json has it."""
    return ArmConfig.model_validate({"name": "arm", **changes}).model_dump(mode="json")


def trial(recipe: dict[str, Any]) -> dict[str, Any]:
    config = {"model": {"kind": "emoji"}, "recipe": recipe, "adapter": {"kind": "lora"}, "training": TRAINING}
    return TrialConfig.model_validate(config).model_dump(mode="json")


OWN = arm(negative="wrong", adapters=[{}])


def test_each_setting_that_differs_is_named() -> None:
    one = {"guidance": 3, "negative": "", "adapters": [{"scale": 1.0}]}
    placebo = {"guidance": 2, "negative": "", "adapters": []}
    assert deviations(one, placebo, ignoring=["adapters"]) == (("guidance", 3, 2),)
    assert deviations(one, placebo) == (("adapters.0.scale", 1.0, None), ("guidance", 3, 2))
    assert deviations(one, one) == ()
    assert deviations({"a": None}, {}) == (), "a setting that is not given is None"
    assert deviations({"ab": 1, "a": 1}, {}, ignoring=["a"]) == (("ab", 1, None),), "whole keys"


@pytest.mark.parametrize(
    ("own", "adapter", "named"),
    [
        (KEYWORDS, {"sham": {}}, []),
        (DEGRADE, {"sham": {}}, []),
        (DEGRADE, {"recipe": PLAIN}, []),
        (DEGRADE, {"recipe": {**PLAIN, "name": "clean"}}, []),
        (DEGRADE, {"recipe": PLAIN, "training": TRAINING, "adapter": {"kind": "lora"}}, []),
        (KEYWORDS, {"recipe": {**KEYWORDS, "keywords": ["sharp", "clean"]}}, []),
        (KEYWORDS, {"recipe": {**KEYWORDS, "keywords": ["sharp"]}}, ["images"]),
        (KEYWORDS, {"recipe": {**KEYWORDS, "guidance": [8, 13]}}, ["recipe.guidance.1"]),
        (KEYWORDS, {"recipe": PLAIN}, ["recipe.kind"]),
        (DEGRADE, {"recipe": {**DEGRADE, "degradations": ["noise"]}}, ["recipe.kind"]),
        (DEGRADE, {"recipe": {**PLAIN, "count": 2}}, ["images", "recipe.count"]),
        (DEGRADE, {"recipe": {**PLAIN, "prompts": ["a cat", "an owl"]}}, ["recipe.prompts.1"]),
        (DEGRADE, {"recipe": PLAIN, "training": {**TRAINING, "seed": 1}}, ["training.seed"]),
        (DEGRADE, {"recipe": PLAIN, "adapter": {"kind": "lora", "rank": 2}}, ["adapter.rank"]),
        (DEGRADE, {"file": "x.safetensors"}, ["source"]),
        (PLAIN, {"recipe": PLAIN}, ["recipe.kind"]),
    ],
)
def test_a_sham_is_trained_alike(own: dict[str, Any], adapter: dict[str, Any], named: list[str]) -> None:
    control = arm(negative="wrong", adapters=[adapter])
    assert [key for key, _, _ in unlike_own(control["adapters"][0], trial(own))] == named
    kind = control_kind(control, OWN, own=trial(own), sampler=SAMPLER)
    if own is PLAIN:
        assert kind == "alone", "it is the trial's own"
    else:
        assert kind == ("other" if named else "sham")


def test_a_sham_that_acts_otherwise_is_named_so() -> None:
    sham = arm(negative="wrong", adapters=[{"sham": {}, "scale": 0.01, "branch": "both"}])
    found = differences(sham, OWN, own=trial(KEYWORDS), sampler=SAMPLER)
    assert found == ["scale 0.01, not 1", "branch both, not negative"]
    small = arm(negative="wrong", guidance=3, adapters=[{"recipe": {**PLAIN, "count": 2}}])
    found = differences(small, OWN, own=trial(DEGRADE), sampler=SAMPLER)
    assert found == ["guidance 3, not 2", "images 2, not 24", "recipe.count 2, not 24"]
    assert differences(arm(), OWN, own=trial(DEGRADE), sampler=SAMPLER) == []


SUBJECT = {"recipe": PLAIN, "branch": "both"}
BLUR = {"degrade": "blur", "severity": 0.2}
BOTH = arm(negative="wrong", adapters=[SUBJECT, {}])
HIGH = arm(negative="wrong", guidance=3, adapters=[{}])


@pytest.mark.parametrize(
    ("need", "control", "own", "serving"),
    [
        ("baseline", arm(), OWN, True),
        ("baseline", arm(), HIGH, True),
        ("baseline", arm(guidance=3), HIGH, True),
        ("baseline", arm(guidance=3), OWN, False),
        ("baseline", arm(negative="wrong"), OWN, False),
        ("baseline", arm(adapters=[SUBJECT]), OWN, False),
        ("baseline", arm(adapters=[SUBJECT]), BOTH, True),
        ("placebo", arm(negative="wrong"), OWN, True),
        ("placebo", arm(negative="wrong", guidance=2), OWN, True),
        ("placebo", arm(negative="wrong"), HIGH, False),
        ("placebo", arm(negative="wrong", guidance_interval=[0, 0.5]), OWN, False),
        ("placebo", arm(negative="wrong", guider={"kind": "apg"}), OWN, False),
        ("placebo", arm(negative="bad"), OWN, False),
        ("placebo", arm(), OWN, False),
        ("placebo", arm(negative="wrong"), BOTH, False),
        ("placebo", arm(negative="wrong", adapters=[SUBJECT]), BOTH, True),
        ("placebo", arm(), arm(adapters=[{"branch": "both", "scale": -1}]), True),
        ("placebo", arm(negative="wrong"), arm(negative="{prompt}", adapters=[{}]), True),
        ("placebo", arm(negative="wrong", guidance=4), arm(negative="{prompt}", adapters=[{}]), False),
        ("baseline", arm(post=BLUR), OWN, False),
        ("placebo", arm(negative="wrong", post=BLUR), OWN, False),
        ("placebo", arm(negative="wrong", post=BLUR), arm(negative="wrong", adapters=[{}], post=BLUR), True),
        ("matched", arm(negative="wrong"), OWN, False),
        ("matched", arm(match={"arm": "arm", "by": "saturation"}), OWN, True),
        ("matched", arm(match={"arm": "another", "by": "saturation"}), OWN, False),
    ],
)  # fmt: skip
def test_what_a_headline_needs(
    need: Need, control: dict[str, Any], own: dict[str, Any], serving: bool
) -> None:
    assert serves(need, control, own, sampler=SAMPLER) == serving


def test_a_matched_guidance_is_no_difference_and_a_damage_is_one() -> None:
    matched = {**arm(negative="wrong", match={"arm": "arm", "by": "saturation"}), "guidance": 2.4}
    assert control_kind(matched, OWN, own=None, sampler=SAMPLER) == "matched"
    assert differences(matched, OWN, own=None, sampler=SAMPLER) == []
    other = {**OWN, "name": "another"}
    assert control_kind(matched, other, own=None, sampler=SAMPLER) == "guidance"
    assert differences(matched, other, own=None, sampler=SAMPLER) == ["guidance 2.4, not 2"]
    damaged = arm(negative="wrong", adapters=[{}], post=BLUR)
    assert differences(arm(negative="wrong"), damaged, own=None, sampler=SAMPLER) == [
        "damage none, not blur 0.2"
    ]
