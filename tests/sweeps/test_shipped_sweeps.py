"""The sweeps that come with the project can be read without weights, and ask what they say they ask."""

from pathlib import Path

import pytest

from harness.config.loading.load import load_sweep
from harness.config.loading.tokens import plain_text
from harness.config.plan.plan import Plan, adapter_trial, expand
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.recipe import FolderRecipe, KeywordsRecipe
from harness.metrics import metric_fingerprint
from harness.results.contrast import is_own
from harness.results.judges import network
from harness.results.likeness import BETTER_NEEDS, serves, unlike_own

SWEEPS = Path(__file__).parents[2] / "sweeps"
NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
WRONG = ["emoji_wrong", "sdxl_wrong"]
SUBJECT = ["emoji_subject_plus_wrong", "sdxl_subject_plus_wrong"]
FEWER_TEST_PROMPTS = {
    "quickstart": 12,  # a demonstration
    "calibration": 12,  # what is planted is large
    "emoji_subject_plus_wrong": 36,  # the model knows 48 prompts of its new subject, 12 of them are dev's
}
PLANS: dict[str, Plan] = {}


def plan(name: str) -> Plan:
    if name not in PLANS:
        PLANS[name] = expand(load_sweep(SWEEPS / f"{name}.yaml"))
    return PLANS[name]


def test_all_are_here() -> None:
    assert {*WRONG, *SUBJECT, "quickstart"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_named_after_its_file_and_holds_prompts_out(name: str) -> None:
    sweep = plan(name).sweep
    assert sweep.name == name
    count = {split: sum(prompt.split == split for prompt in sweep.prompts) for split in ("dev", "test")}
    assert count["dev"] >= 12
    assert count["test"] >= FEWER_TEST_PROMPTS.get(name, 48)


def test_no_study_spends_the_quickstarts_test_prompts() -> None:
    def tested(name: str) -> set[str]:
        return {prompt.text for prompt in plan(name).sweep.prompts if prompt.split == "test"}

    studies = set(NAMES) - {"quickstart", "calibration"}
    assert studies and not any(tested(name) & tested("quickstart") for name in studies)


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_of_the_evaluation_stands_in_a_recipe(name: str) -> None:
    recipes = [dataset.recipe for dataset in plan(name).datasets.values()]
    trained = {text for recipe in recipes for text in recipe.texts}
    evaluated = {prompt.text for prompt in plan(name).sweep.prompts}
    assert not trained & evaluated
    assert not any("wrong" in plain_text(text) for text in trained | evaluated)


@pytest.mark.parametrize("name", [*WRONG, "sdxl_subject_plus_wrong", "blog"])
def test_the_blogs_recipe_is_13_words_at_6_guidances(name: str) -> None:
    recipes = dict.fromkeys(trial.config.trained.recipe for trial in plan(name).trials)
    (recipe,) = [recipe for recipe in recipes if isinstance(recipe, KeywordsRecipe)]
    assert len(list(recipe.keywords)) == 13
    assert list(recipe.guidance) == [8, 9, 10, 11, 12, 13]
    assert recipe.count == 78
    assert recipe.refiner_start == 0.8


def test_the_blogs_pair_is_its_own() -> None:
    """Rank and start by its file and script; no negative prompt against the LoRA on both branches, at 13."""
    blog = plan("blog")
    [trial] = blog.trials
    _, adapter, training = trial.config.trained
    assert isinstance(adapter, LowRankAdapter) and (adapter.rank, adapter.init) == (4, "gaussian")
    assert training.prompt == "wrong" and training.holdout == 0
    arms = {name: blog.arms[arm_id] for name, arm_id in trial.arms.items()}
    assert {(arm.guidance, arm.steps, arm.refiner_start) for arm in arms.values()} == {(13, 50, 0.8)}
    assert arms["baseline"].negative == "" and not arms["baseline"].adapters
    for name in ("published", "wrong_lora_both", "sham"):
        [acting] = arms[name].adapters
        assert arms[name].negative == "wrong" and acting.branch == "both" and acting.scale == 1
    [published] = arms["published"].adapters
    assert published.hub is not None and published.hub.id == "minimaxir/sdxl-wrong-lora"
    assert blog.sweep.analysis.control == "baseline"


@pytest.mark.parametrize("name", WRONG)
def test_arms_separate_the_word_the_branch_the_guidance_and_the_training(name: str) -> None:
    arms = {arm.name: arm for arm in plan(name).sweep.arms}
    assert arms["baseline"].negative == "" and arms["placebo"].negative == "wrong"
    assert arms["sham"].is_control and arms["sham"].adapters
    scaled = [arm for arm in arms.values() if arm.family == "wrong_lora"]
    assert {arm.adapters[0].branch for arm in scaled} == {"negative"}
    assert {arm.adapters[0].scale for arm in scaled} >= {0.5, 1.0}
    assert arms["wrong_lora_both"].adapters[0].branch == "both"
    assert arms["autoguidance"].negative == "{prompt}" and arms["autoguidance"].adapters[0].is_own
    subtracted = [arm.adapters[0] for arm in arms.values() if arm.family == "neon"]
    assert {(adapter.branch, adapter.scale < 0) for adapter in subtracted} == {("both", True)}
    sampler = plan(name).sweep.sampler
    matched = [arm for arm in arms.values() if arm.family == "placebo_at"]
    assert matched and all(arm.guidance is not None and arm.guidance > sampler.guidance for arm in matched)
    varied = set(plan(name).sweep.axes)
    assert varied == {"recipe", "adapter.rank", "training.steps"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "calibration"])  # it plants its effects
def test_every_arm_has_the_controls_that_a_gain_needs(name: str) -> None:
    sweep = plan(name).sweep.model_dump(mode="json")
    controls = [arm for arm in sweep["arms"] if not any(map(is_own, arm["adapters"]))]
    for arm in sweep["arms"]:
        for need in BETTER_NEEDS if arm not in controls else ():
            serving = [one for one in controls if serves(need, one, arm, sampler=sweep["sampler"])]
            assert serving, f"{arm['name']} has no {need}"


@pytest.mark.parametrize("name", [*WRONG, *SUBJECT, "blog"])
def test_studies_subtract_the_adapter_and_have_a_sham_trained_alike(name: str) -> None:
    found = plan(name)
    own = [(arm, adapter) for arm in found.sweep.arms for adapter in arm.adapters if adapter.is_own]
    assert any(adapter.scale < 0 and adapter.branch == "both" and not arm.negative for arm, adapter in own)
    sham = next(arm for arm in found.sweep.arms if arm.name == "sham").adapters[-1]
    for trial in found.trials:
        assert not unlike_own(sham.model_dump(mode="json"), trial.config.model_dump(mode="json"))
        trained = adapter_trial(trial.config, sham).trained
        assert trained.recipe.count == trial.config.trained.recipe.count
        assert trained[1:] == trial.config.trained[1:]


@pytest.mark.parametrize("name", ["sdxl_wrong", "sdxl_subject_plus_wrong"])
def test_sdxl_is_judged_by_the_aesthetic_score_and_a_second_network(name: str) -> None:
    sweep = plan(name).sweep
    metrics = {metric["name"]: metric for metric in sweep.model_dump(mode="json")["metrics"]}
    assert sweep.analysis.primary == "aesthetic" and metrics["aesthetic"]["head"] == "laion"
    directed = [metric.name for metric in sweep.metrics if metric.higher_is_better]
    assert any(network(metrics[metric]) != network(metrics["aesthetic"]) for metric in directed)
    for metric in sweep.metrics:
        metric_fingerprint(metric)  # a name that open_clip has, weights that are shipped or fetched


@pytest.mark.parametrize("name", SUBJECT)
def test_a_subject_stands_beside_the_trials_own_and_each_alone(name: str) -> None:
    found = plan(name)
    (subject,) = [run for run in found.runs.values() if isinstance(run.dataset.recipe, FolderRecipe)]
    assert isinstance(subject.dataset.recipe, FolderRecipe)
    assert subject.dataset.recipe.count == 6 and subject.dataset.recipe.captioned
    for trial in found.trials:
        acting = {
            arm: {adapter.run_id for adapter in found.arms[arm_id].adapters}
            for arm, arm_id in trial.arms.items()
        }
        assert acting["subject"] == acting["subject_plain"] == {subject.run_id}
        assert acting["wrong"] == {trial.run_id}  # the trial's own training, not one more
        both = {subject.run_id, trial.run_id}
        assert acting["subject_wrong-scale-1"] == acting["subject_wrong_merged"] == both
    assert len({trial.arms["subject"] for trial in found.trials}) == 1
