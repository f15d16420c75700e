"""Parts that would do nothing, or cannot go together, are faults before any work."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness.config.loading.check_sweep import without_effect
from harness.config.plan.plan import expand
from harness.errors import ConfigError
from tests.config.example import load

PLACEBO = {"name": "placebo", "negative": "wrong"}
OPTUNA = {"kind": "optuna", "trials": 2}
PLAIN = {"kind": "plain", "prompts": ["a cat"], "count": 2}


def lora(**adapter: Any) -> list[dict[str, Any]]:
    return [PLACEBO, {"name": "lora", "negative": "wrong", "adapters": [adapter]}]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"sampler": {"guidance": 1}},
            "arms.lora.adapters[0]: at a guidance of at most 1 no negative rows are computed, so",
        ),
        (
            {"sampler": {"guidance": 1, "guidance_rescale": 0.7}, "arms": lora(branch="positive")},
            "sampler.guidance_rescale is not used: no arm has a guidance above 1",
        ),
        ({"arms": lora(scale=0)}, "arms.lora.adapters[0].scale: 0 does nothing; leave the adapter out"),
        (
            {"arms": [PLACEBO, {"name": "lora", "negative": "{prompt}", "adapters": [{"branch": "both"}]}]},
            "arms.lora.negative: {prompt} makes both branches alike, so guidance does nothing",
        ),
        (
            {"arms": [*lora(), {"name": "x", "negative": "a {promt}"}]},
            "arms.x.negative: {promt} is not known; allowed: {prompt}",
        ),
        (
            {"arms": [*lora(), {"name": "x", "guidance": 1, "guider": {"kind": "apg"}}]},
            "arms.x.guider: a guidance of at most 1 is none, so it does nothing; leave it out",
        ),
        (
            {"arms": [*lora(), {"name": "x", "guidance": 0.5, "guidance_interval": [0.1, 0.5]}]},
            "arms.x.guidance_interval: a guidance of at most 1 is none",
        ),
        (
            {"arms": [*lora(), {"name": "x", "guidance_interval": [0.5, 0.2]}]},
            "arms[2].guidance_interval: must be [start, stop] with start below stop",
        ),
        (
            {"arms": [*lora(), {"name": "x", "guidance_interval": [0.51, 0.54]}]},
            "arms.x.guidance_interval: [0.51, 0.54] holds none of the 20 steps",
        ),
        (
            {"sampler": {"guidance_interval": [0.8, 1]}},
            "sampler.guidance_interval: begins with the refiner, on which no adapter acts",
        ),
        (
            {"sampler": {"guidance_rescale": 0.7, "guider": {"kind": "cfg_zero_star"}}},
            "arms.lora.guider: the first steps of cfg_zero_star are zeros, which nothing can rescale",
        ),
        (
            {"arms": [*lora(), {"name": "x", "guider": {"kind": "slg"}}]},
            "arms[2].guider: slg needs a third row with perturbed attention, which is not generated here",
        ),
        (
            {"sampler": {"guider": {"kind": "tcfg"}}},
            "sampler.guider.kind: tcfg is not known; did you mean cfg?",
        ),
        (
            {"arms": lora(weights="ema")},
            "arms.lora.adapters[0].weights: ema needs training.ema, a decay such as 0.99",
        ),
        (
            {"adapter": {"kind": "textual_inversion"}, "arms": [PLACEBO, {"name": "lora", "adapters": [{}]}]},
            "arms.lora.adapters[0]: stands for the word 'wrong', which no negative prompt of the arm holds",
        ),
        (
            {"compute": {"workers_per_trial": 5}},
            "compute: 5 processes train one trial, and a step has 4 rows for them",
        ),
        (
            {"training": {"crop": "random"}},
            "training.crop: random has no room in a keywords recipe's square images",
        ),
        (
            {"training": {"text_encoder_learning_rate": 0.1}},
            "training.text_encoder_learning_rate is not used: set adapter.text_encoders: true",
        ),
        (
            {"adapter": {"kind": "textual_inversion"}, "training": {"lora_plus_ratio": 2}},
            "training.lora_plus_ratio is not used by textual_inversion",
        ),
        (
            {"adapter": {"kind": "textual_inversion", "word": "bad"}},
            "training.prompt 'wrong' must hold adapter.word 'bad'",
        ),
        ({"training": {"optimizer": {"d_coef": 2}}}, "d_coef is prodigy's, and adamw does not use it"),
        ({"training": {"timesteps": {"mean": 1}}}, "mean and deviation are logit_normal's"),
        ({"arms": lora(adapter={"rank": 2})}, "adapter and training are settings of another adapter"),
        (
            {"arms": lora(recipe=PLAIN, file="x.safetensors")},
            "give recipe or sham (an adapter to train), file or hub",
        ),
        (
            {"arms": [*lora(), {"name": "x", "adapters": [{"file": "no.safetensors"}]}]},
            "is not a file; give a .safetensors file",
        ),
        (
            {"sampler": {"scheduler": "HeunDiscreteScheduler"}},
            "sampler.scheduler: HeunDiscreteScheduler cannot hand over to a refiner; set refiner_start: null",
        ),
        (
            {"model": {"kind": "emoji"}, "sampler": {"steps": 4}},
            "sampler.steps: 4 with refiner_start: 0.8 leaves no step to the refiner",
        ),
        (
            {"model": {"kind": "sdxl", "refiner": None}},
            "sampler.refiner_start: the model has no refiner; set it to null, or give model.refiner",
        ),
    ],
)
def test_a_part_that_would_do_nothing_is_a_fault(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **{"arms": lora(), "axes": {"training.steps": [10, 20]}, **changes})
    assert line in str(caught.value)


def test_captions_must_be_there(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    changes: dict[str, Any] = {
        "recipe": {"kind": "folder", "path": str(tmp_path)},
        "training": {"prompt": "wrong, {caption}", "crop": "random"},
        "arms": lora(),
    }
    with pytest.raises(ConfigError, match="needs a caption for every image"):
        load(tmp_path, **changes)
    (tmp_path / "a.txt").write_text("a black square")
    sweep = load(tmp_path, **changes)
    assert sweep.recipe.captioned  # type: ignore[union-attr]


def test_an_adapter_of_another_recipe_may_have_settings_of_its_own(tmp_path: Path) -> None:
    subject = {
        "recipe": PLAIN,
        "adapter": {"kind": "lora", "rank": 2},
        "training": {"prompt": "a cat", "steps": 3},
        "branch": "positive",
    }
    both = {"name": "both", "negative": "wrong", "adapters": [subject, {}]}
    sweep = load(tmp_path, arms=[PLACEBO, {"name": "subject", "adapters": [subject]}, both])
    assert [(own.is_control, own.waits_for_selection) for own in sweep.arms] == [
        (True, False),
        (True, True),
        (False, True),
    ]
    plan = expand(sweep)
    assert len(plan.runs) == 2 + 1, "two ranks, and the subject once"
    (alone,) = {trial.arms["subject"] for trial in plan.trials}
    owners = [run for run in plan.runs if alone in {arm.arm_id for arm in plan.arms_of_run(run)}]
    assert owners == [plan.arms[alone].adapters[0].run_id]


@pytest.mark.parametrize(
    ("match", "changes", "fault"),
    [
        ({"arm": "placebo"}, {}, "match.arm: placebo has no adapter of the trial; allowed: wrong_lora"),
        ({"by": "aesthetic"}, {}, "match.by: aesthetic is what is compared; allowed: saturation, effective_"),
        ({"by": "colour"}, {}, "match.by: colour is not known; allowed: saturation, effective_guidance"),
        ({"between": [3, 2]}, {}, "must be [start, stop] with start below stop"),
        ({}, {"sampler__guidance": 1.0}, "match.between: wrong_lora has no guidance above 1; give [lowest,"),
        (
            {},
            {"analysis": {"control": "matched"}},
            "'matched' is not a control arm without match and post; allowed: placebo",
        ),
        (
            {},
            {
                "search": {
                    "kind": "optuna",
                    "trials": 2,
                    "objectives": [{"kind": "contrast", "control": "matched"}],
                }
            },
            "search.objectives[0].control: matched cannot be compared; allowed: placebo",
        ),
    ],
)
def test_a_match_that_cannot_be_found_is_named(
    tmp_path: Path, match: dict[str, Any], changes: dict[str, Any], fault: str
) -> None:
    matched = {"name": "matched", "match": {"arm": "wrong_lora", "by": "saturation", **match}}
    own = {"name": "wrong_lora", "negative": "wrong", "adapters": [{"branch": "both"}]}
    with pytest.raises(ConfigError, match=re.escape(fault)) as raised:
        load(tmp_path, arms=[PLACEBO, matched, own], **changes)
    assert all(len(line) < 300 for line in str(raised.value).splitlines())


@pytest.mark.parametrize(
    ("arm", "fault"),
    [
        ({"guidance": 3}, "guidance is found by match; give one of the two"),
        ({"adapters": [{}]}, "match is of a control; leave out the trial's own adapter"),
    ],
)
def test_a_matched_arm_is_a_control_without_a_guidance(
    tmp_path: Path, arm: dict[str, Any], fault: str
) -> None:
    matched = {"name": "matched", "match": {"arm": "wrong_lora", "by": "saturation"}, **arm}
    with pytest.raises(ConfigError, match=fault):
        load(tmp_path, arms=[PLACEBO, matched, {"name": "wrong_lora", "adapters": [{}]}])


BLURRED = {"name": "blurred", "negative": "wrong", "post": {"degrade": "blur", "severity": 0.2}}


def test_a_damaged_control_is_compared_with_its_twin(tmp_path: Path) -> None:
    own = {"name": "wrong_lora", "negative": "wrong", "adapters": [{}]}
    sweep = load(tmp_path, arms=[PLACEBO, BLURRED, own])
    assert [arm.name for arm in sweep.arms if arm.can_select] == ["placebo"]
    with pytest.raises(ConfigError, match=r"arms\.blurred\.post: no other arm is like it without the damage"):
        load(tmp_path, arms=[PLACEBO, {**BLURRED, "negative": "bad"}, own])
    with pytest.raises(ConfigError, match="'blurred' is not a control arm without match and post"):
        load(tmp_path, arms=[PLACEBO, BLURRED, own], analysis={"control": "blurred"})
    with pytest.raises(ConfigError, match=r"post\.severity: 0 is not allowed: must be > 0"):
        load(tmp_path, arms=[PLACEBO, {**BLURRED, "post": {"degrade": "blur", "severity": 0}}, own])


FOX = "a fox on a blue background"


@pytest.mark.parametrize(
    "other",
    [
        "A fox on a blue background",
        f"{FOX}.",
        "(a fox)++ on a blue background",
        "a fox, on a blue+ background",
    ],
)
def test_a_test_prompt_that_reads_like_a_dev_prompt_is_refused(tmp_path: Path, other: str) -> None:
    prompts = [{"text": FOX, "split": "dev"}, {"text": other, "split": "test"}]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, prompts=prompts)
    assert f"prompts: {other!r} (test) reads like {FOX!r} (dev)" in str(caught.value)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300
    load(tmp_path, prompts=[prompts[0], {"text": "a fox on a green background", "split": "test"}])


def test_a_prompt_that_training_images_are_drawn_from_is_refused(tmp_path: Path) -> None:
    plain = {"kind": "plain", "prompts": ["a Cat!", "a dog"], "count": 2}
    prompts = [{"text": "a fox", "split": "dev"}, {"text": "a cat", "split": "test"}]
    prior = {"prompt": "a dog", "recipe": plain}
    for changes, where in (
        ({"recipe": plain}, "recipe"),
        ({"arms": lora(recipe=plain)[:1] + lora()[1:] + [{"name": "sham", "adapters": [{"recipe": plain}]}]},
         "arms.sham.adapters[0].recipe"),
        ({"training": {"prior": prior}}, "training.prior"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, prompts=prompts, **changes)
        assert f"{where}: 'a Cat!' is also one of prompts ('a cat')" in str(caught.value)


ZERO_STAR = {"steps": 20, "guider": {"kind": "cfg_zero_star"}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, None),
        ({"sampler": {"guidance": 1}}, "placebo"),
        ({"sampler": {"guidance": 1, "guidance_interval": [0, 0.5]}}, "placebo"),
        (
            {"arms": [{"name": "at", "negative": "bad", "axes": {"guidance": [0.5, 1, 3]}}]},
            "at-guidance-0.5, at-guidance-1",
        ),
        ({"sampler": {**ZERO_STAR, "guidance_interval": [0, 0.1]}}, None),
        ({"sampler": {**ZERO_STAR, "guidance_interval": [0, 0.05]}}, "placebo, wrong_lora"),
    ],
)
def test_a_negative_prompt_that_does_nothing_is_a_warning(
    tmp_path: Path, changes: dict[str, Any], named: str | None
) -> None:
    own = {"name": "wrong_lora", "negative": "wrong", "guidance": 3, "adapters": [{}]}
    arms = [{"name": "baseline"}, PLACEBO, own, *changes.get("arms", [])]
    warnings = list(without_effect(load(tmp_path, **{**changes, "arms": arms})))
    said = f"warning: the negative prompt does nothing in {named}: no step is guided"
    assert [line[: len(said)] for line in warnings] == ([said] if named else [])
