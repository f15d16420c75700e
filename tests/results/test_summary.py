"""The summary: estimates, missing pairs, multiplicity, degenerate cases, selection."""

import numpy as np
import pandas as pd
import pytest

from harness.config.schema.evaluation import AnalysisConfig
from harness.config.schema.metric import AestheticMetric
from harness.errors import ArtifactError, ConfigError
from harness.results.inference import estimate_prompts, max_t_p
from harness.results.summary import infer, prompt_means, select_best, summarise
from tests.results.sweeps import ANALYSIS, ARM, METRICS, Value, make_tables


def noise(seed: int, gain: float = 0.0) -> Value:
    """Independent scores with a gain for the trials' arm."""
    rng = np.random.default_rng(seed)

    def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float:
        return float(rng.normal() + (gain if arm == ARM else 0.0))

    return value


def summary_of(tables: dict[str, pd.DataFrame], analysis: AnalysisConfig = ANALYSIS) -> pd.DataFrame:
    return summarise(**tables, against=None, analysis=analysis, metrics=METRICS)


def row_of(summary: pd.DataFrame, **where: str) -> pd.Series:
    found = summary
    for column, value in {"control": "placebo", "metric": "aesthetic", "split": "dev", **where}.items():
        found = found[found[column] == value]
    assert len(found) == 1
    return found.iloc[0]


def test_one_row_per_contrast_with_the_numbers_of_its_pairs() -> None:
    def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float:
        if arm != ARM:
            return 10.0 * prompt
        return 10.0 * prompt + (prompt + 1) * (1 if seed else 3) - (6 if prompt == 0 else 0)

    summary = summary_of(make_tables(value, trials=2, prompts={"dev": 6}))
    assert len(summary) == 2 * 2 * 2  # trials × controls × metrics; no test images, no test rows
    row = row_of(summary, trial_id="t1")
    per_prompt = np.array([2.0 - 6, 4, 6, 8, 10, 12])
    assert row["mean_difference"] == pytest.approx(per_prompt.mean())
    assert row["mean_arm"] - row["mean_control"] == pytest.approx(row["mean_difference"])
    assert (row["n_prompts"], row["n_pairs"], row["n_missing"]) == (6, 12, 0)
    assert row["win_rate"] == pytest.approx(10 / 12)  # prompt 0 loses twice
    estimates = estimate_prompts(per_prompt[:, None], patterns=2000, seed=0)
    assert row["p_value"] == estimates.p_K[0]
    low, high = estimates.interval(0.95)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low[0], high[0]))
    assert pd.isna(row["reason"])
    assert row["higher_is_better"]
    assert row_of(summary, trial_id="t1", metric="saturation")["higher_is_better"] is pd.NA


def test_missing_pairs_are_counted_and_leave_each_prompt_its_weight() -> None:
    def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float | None:
        if arm == ARM and prompt == 0 and seed == 1:
            return None
        if arm == "placebo" and prompt == 1:
            return None
        return float(prompt * 100 + seed) if arm == ARM else float(seed)

    row = row_of(summary_of(make_tables(value, trials=1, prompts={"dev": 8}, seeds=3)))
    assert (row["n_prompts"], row["n_pairs"], row["n_missing"]) == (7, 24 - 1 - 3, 4)
    assert row["mean_difference"] == pytest.approx(100 * (0 + 2 + 3 + 4 + 5 + 6 + 7) / 7)
    assert row["mean_arm"] - row["mean_control"] == pytest.approx(row["mean_difference"])


def test_ties_count_one_half_and_lower_can_win() -> None:
    arm = np.array([[1.0, 2.0, 3.0, np.nan]])
    control = np.array([[1.0, 3.0, 5.0, 1.0]])
    prompt = np.array([0, 0, 1, 1])
    assert prompt_means(arm, control, prompt, sign_K=np.array([1.0])).wins_K[0] == 0.5
    assert prompt_means(arm, control, prompt, sign_K=np.array([-1.0])).wins_K[0] == 2.5


def test_every_failure_is_null_with_a_reason() -> None:
    tables = make_tables(noise(0), trials=2, prompts={"dev": 8}, failed=[1])
    row = row_of(summary_of(tables), trial_id="t1")
    assert row["reason"] == "no pairs: arm: no image (the loss became NaN)"
    assert (row["n_prompts"], row["n_pairs"], row["n_missing"]) == (0, 0, 16)
    numbers = [
        "mean_arm",
        "mean_control",
        "mean_difference",
        "ci_low",
        "ci_high",
        "p_value",
        "p_adjusted",
        "win_rate",
    ]
    assert row[numbers].isna().all()


@pytest.mark.parametrize(
    ("prompts", "reason", "with_p"),
    [
        (1, "one prompt: no interval and no p", False),
        (5, "5 prompts are too few for a 95 % interval", True),
    ],
)
def test_few_prompts(prompts: int, reason: str, with_p: bool) -> None:
    row = row_of(summary_of(make_tables(noise(1), trials=1, prompts={"dev": prompts})))
    assert row["reason"] == reason
    assert np.isfinite(row["mean_difference"])
    assert np.isnan(row["ci_low"])
    assert np.isfinite(row["p_value"]) == with_p


def test_the_same_difference_everywhere_has_no_interval() -> None:
    def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float:
        return prompt * 0.1 + (0.3 if arm == ARM else 0.0)

    row = row_of(summary_of(make_tables(value, trials=1, prompts={"dev": 8})))
    assert row["mean_difference"] == pytest.approx(0.3)
    assert np.isnan(row["ci_low"]) and np.isnan(row["p_value"]) and np.isnan(row["p_adjusted"])
    assert row["reason"] == "every prompt has the same difference: no interval and no p"


def test_an_arm_that_equals_its_control_has_the_interval_0() -> None:
    def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float:
        return prompt * 0.1

    row = row_of(summary_of(make_tables(value, trials=1, prompts={"dev": 8})))
    assert (row["mean_difference"], row["ci_low"], row["ci_high"], row["p_value"]) == (0, 0, 0, 1)


def with_shared_noises(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The same tables, as if all prompts of a seed had started from one noise."""
    images = tables["images"]
    return {**tables, "images": images.assign(latent_hash="noise " + images["seed"].astype(str))}


def test_shared_noises_have_a_two_way_interval_and_below_8_of_them_no_verdict() -> None:
    tables = make_tables(noise(3, 0.5), trials=1, prompts={"dev": 12}, seeds=2)
    own, shared = row_of(summary_of(tables)), row_of(summary_of(with_shared_noises(tables)))
    assert shared["mean_difference"] == pytest.approx(own["mean_difference"])
    assert np.isfinite(shared["ci_low"]) and shared["ci_low"] != own["ci_low"]
    assert np.isnan(shared["p_value"]) and np.isnan(shared["p_adjusted"])
    assert shared["reason"] == "prompts share 2 starting noises: no verdict below 8"


def test_one_shared_noise_has_no_interval() -> None:
    tables = with_shared_noises(make_tables(noise(3), trials=1, prompts={"dev": 12}, seeds=1))
    row = row_of(summary_of(tables))
    assert np.isnan(row["ci_low"]) and np.isnan(row["p_value"]) and np.isfinite(row["mean_difference"])
    assert row["reason"] == "all prompts share one starting noise: no interval and no p"


def test_eight_shared_noises_carry_a_p() -> None:
    tables = with_shared_noises(make_tables(noise(3, 0.5), trials=1, prompts={"dev": 12}, seeds=8))
    row = row_of(summary_of(tables))
    assert np.isfinite(row["p_value"]) and pd.isna(row["reason"])


def test_no_images_at_all() -> None:
    tables = make_tables(noise(0), trials=2, prompts={})
    summary = summary_of(tables)
    assert len(summary) == 2 * 2 * 2
    assert (summary["reason"] == "no pairs: there are no images").all()
    assert select_best(summary, ANALYSIS) is None


def test_the_order_of_the_tables_does_not_matter() -> None:
    tables = make_tables(noise(2, 0.3), trials=3, prompts={"dev": 16, "test": 14}, test_trials=[2])
    shuffled = {name: frame.sample(frac=1, random_state=1) for name, frame in tables.items()}
    pd.testing.assert_frame_equal(summary_of(tables), summary_of(shuffled))


def test_test_rows_are_those_with_test_images() -> None:
    tables = make_tables(noise(3), trials=3, prompts={"dev": 6, "test": 7}, test_trials=[1])
    summary = summary_of(tables)
    test = summary[summary["split"] == "test"]
    assert set(test["trial_id"]) == {"t1"}
    assert set(test["n_prompts"]) == {7}
    assert set(summary.loc[summary["split"] == "dev", "n_prompts"]) == {6}


def test_a_pair_from_different_latents_is_an_error() -> None:
    tables = make_tables(noise(0), trials=1, prompts={"dev": 6})
    tables["images"].loc[tables["images"]["arm_id"] == "d-t0", "latent_hash"] = "other"
    with pytest.raises(
        ArtifactError, match=r"prompt 'dev prompt 0', seed 0: arms d-t0 and d-baseline did not start"
    ):
        summary_of(tables)


def test_p_is_adjusted_over_trials_and_arms_of_a_control_metric_and_split() -> None:
    tables = make_tables(noise(4, 0.5), trials=5, prompts={"dev": 9, "test": 9}, test_trials=[0])
    summary = summary_of(tables)
    families = summary.groupby(["control", "metric", "split"])
    assert set(families.size()) == {5, 1}
    for _, family in families:
        assert (family["p_adjusted"] >= family["p_value"] - 1e-9).all()
        if len(family) == 1:
            assert family["p_adjusted"].iloc[0] == pytest.approx(family["p_value"].iloc[0])
    images, scores = tables["images"], tables["scores"]
    dev = images[images["split"] == "dev"].merge(scores[scores["metric"] == "aesthetic"], on="image_id")
    means = dev.groupby(["arm_id", "prompt_id"])["value"].mean().unstack("arm_id")
    difference = np.stack([means[f"d-t{trial}"] - means["d-placebo"] for trial in range(5)], axis=1)
    family = summary[(summary[["control", "metric", "split"]] == ["placebo", "aesthetic", "dev"]).all(axis=1)]
    assert family["p_adjusted"].to_numpy() == pytest.approx(max_t_p(difference, patterns=2000, seed=0))


def test_images_of_one_prompt_are_not_independent() -> None:
    """Intervals over images would be much too narrow where prompts differ in how much they gain."""
    rng = np.random.default_rng(5)
    prompts, seeds, samples = 12, 8, 600
    gain = rng.normal(0, 1, size=(prompts, 1, samples)) + rng.normal(0, 1, size=(prompts, seeds, samples))
    analysis = AnalysisConfig()
    clustered = infer(estimate_prompts(gain.mean(axis=1), patterns=500), analysis)
    naive = infer(estimate_prompts(gain.reshape(prompts * seeds, samples), patterns=500), analysis)

    def misses(found: pd.DataFrame) -> float:
        return float(((found["ci_low"] > 0) | (found["ci_high"] < 0)).mean())

    assert misses(clustered) < 0.085  # nominal 0.05, simulation noise 0.009
    assert misses(naive) > 0.25


def test_best_of_24_null_trials_shrinks_on_test_prompts() -> None:
    """The winner's curse, and why test prompts are drawn for the selected trial only after selection.

    24 trials that change nothing: the best of them lies about 1.95 standard errors above 0 on the prompts
    it was selected on, and at 0 on average on fresh ones.
    """
    rng = np.random.default_rng(6)
    sweeps, trials, prompts = 300, 24, 32
    dev = rng.normal(size=(sweeps, trials, prompts)).mean(axis=2)
    test = rng.normal(size=(sweeps, trials, prompts)).mean(axis=2)
    summary = pd.DataFrame(
        {
            "trial_id": [f"t{trial}" for trial in range(trials)],
            "control": "placebo",
            "metric": "aesthetic",
            "split": "dev",
            "higher_is_better": pd.array([True] * trials, dtype="boolean"),
        }
    )
    best = []
    for sweep in range(sweeps):
        name = select_best(summary.assign(mean_difference=dev[sweep]), ANALYSIS)
        assert name is not None
        best.append(int(name[1:]))
    error = 1 / np.sqrt(prompts)
    on_dev, on_test = (means[range(sweeps), best].mean() / error for means in (dev, test))
    assert on_dev == pytest.approx(1.95, abs=0.15)
    assert on_test == pytest.approx(0.0, abs=0.2)


def test_the_best_trial_follows_the_direction_and_ignores_failures() -> None:
    gains = {"t0": 0.1, "t1": 0.5, "t3": 0.5}

    def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float:
        return prompt * 0.01 + (gains[trial] * (1 + prompt) if trial else 0.0)

    summary = summary_of(make_tables(value, trials=4, prompts={"dev": 6}, failed=[2]))
    assert select_best(summary, ANALYSIS) == "t1"  # the first of two equals
    lower = summary.assign(higher_is_better=pd.array([False] * len(summary), dtype="boolean"))
    assert select_best(lower, ANALYSIS) == "t0"


def test_a_primary_metric_without_direction_is_an_error() -> None:
    summary = summary_of(make_tables(noise(0), trials=1, prompts={"dev": 6}))
    with pytest.raises(
        ConfigError, match=r"analysis.primary 'saturation' has no better direction.*allowed: aesthetic"
    ):
        select_best(summary, AnalysisConfig(primary="saturation"))


def test_a_metric_that_nobody_scored_says_so() -> None:
    tables = make_tables(noise(0), trials=1, prompts={"dev": 6})
    tables["scores"] = tables["scores"][tables["scores"]["metric"] != "aesthetic"]
    summary = summarise(
        **tables, against=None, analysis=ANALYSIS, metrics=(AestheticMetric(encoder="emoji", head="emoji"),)
    )
    assert set(summary["reason"]) == {"no pairs: arm: not scored; control: not scored"}


def test_lost_pairs_cannot_turn_no_difference_into_a_better_arm() -> None:
    """The arm's worst images of a null effect are lost: without them it looks better."""
    rng = np.random.default_rng(11)
    own = rng.normal(0.25, 0.6, size=(12, 2))
    worst = set(map(tuple, np.argwhere(own <= np.sort(own.ravel())[1])))

    def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float | None:
        if arm == ARM and (prompt, seed) in worst:
            return None
        return 5.0 + 0.3 * prompt + (float(own[prompt, seed]) if arm == ARM else 0.0)

    row = row_of(summary_of(make_tables(value, trials=1, prompts={"dev": 12})))
    assert row["n_missing"] == 2
    assert row["ci_low"] > 0 and row["p_adjusted"] < 0.05, "without the lost pairs it is better"
    assert row["verdict"] == "undecided"
    worst.clear()
    assert row_of(summary_of(make_tables(value, trials=1, prompts={"dev": 12})))["n_missing"] == 0


def test_more_than_a_tenth_lost_is_no_verdict() -> None:
    def value(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float | None:
        lost = arm == ARM and prompt < 3 and seed == 1
        return None if lost else 5.0 + 0.01 * prompt * seed + (1.0 + 0.1 * prompt if arm == ARM else 0.0)

    row = row_of(summary_of(make_tables(value, trials=1, prompts={"dev": 12})))
    assert row["verdict"] == "undecided" and "12 % of the pairs are lost" in row["verdict_reason"]


def test_a_margin_makes_small_differences_equivalent_on_the_primary_metric_alone() -> None:
    tables = make_tables(noise(7), trials=1, prompts={"dev": 40}, seeds=2)
    wide = ANALYSIS.model_copy(update={"margin": 2.0})
    assert row_of(summary_of(tables))["verdict"] == "undecided"
    row = row_of(summary_of(tables, wide))
    assert (row["verdict"], row["margin"]) == ("equivalent", 2.0) and pd.isna(row["prompts_to_decide"])
    assert pd.isna(row_of(summary_of(tables, wide), metric="saturation")["margin"])


def test_undecided_comes_with_what_the_design_finds_and_what_would_decide_it() -> None:
    row = row_of(summary_of(make_tables(noise(8, 0.1), trials=1, prompts={"dev": 12})))
    assert row["verdict"] == "undecided" and row["family"] == 1
    error = (row["ci_high"] - row["ci_low"]) / 2 / 2.200985  # t of 11 degrees of freedom
    assert row["detectable"] == pytest.approx(3.0784 * error, rel=1e-3)
    assert row["prompts_to_decide"] > 12
    family = summary_of(make_tables(noise(8, 0.1), trials=6, prompts={"dev": 12}))
    assert set(family["family"]) == {6}
    assert row_of(family, trial_id="t0")["detectable"] > row["detectable"]


def test_identical_images_are_equivalent_with_the_reason() -> None:
    row = row_of(summary_of(make_tables(lambda *_: 1.0, trials=1, prompts={"dev": 8})))
    assert row["verdict"] == "equivalent"
    assert row["verdict_reason"] == "every pair has the same score in both arms"
