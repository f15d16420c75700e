"""Intervals and p: hand-computed cases, scipy, statsmodels, mne. Error rates: test_error_rates.py."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from harness.results.inference import estimate_crossed, estimate_prompts, max_t_p, sign_flip_p, too_few


def normal(*shape: int, seed: int, mean: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, size=shape)


def test_interval_and_skewness_are_scipys() -> None:
    means = normal(12, 3, seed=1)
    found = estimate_prompts(means)
    low, high = found.interval(0.95)
    theirs = scipy_stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert low == pytest.approx(theirs.low) and high == pytest.approx(theirs.high)
    assert found.mean_K == pytest.approx(means.mean(axis=0))
    assert found.skewness_K == pytest.approx(scipy_stats.skew(means, bias=False))
    assert found.prompts_K.tolist() == [12, 12, 12]
    assert found.reason_K.tolist() == [None] * 3


def test_a_prompt_without_a_pair_is_left_out_of_its_contrast_alone() -> None:
    means = normal(14, 2, seed=2)
    gone = means.copy()
    gone[[3, 9], 0] = np.nan
    found, whole = estimate_prompts(gone), estimate_prompts(means)
    short = estimate_prompts(np.delete(means[:, :1], [3, 9], axis=0))
    for name in ("mean_K", "error_K", "freedom_K", "p_K", "skewness_K", "prompts_K"):
        assert getattr(found, name)[0] == pytest.approx(getattr(short, name)[0])
        assert getattr(found, name)[1] == getattr(whole, name)[1]


def test_what_has_no_interval_says_why() -> None:
    nan = np.nan
    means = np.array([[1.5, 2.0, nan, 0.0, 0.1], [1.5, nan, nan, 0.0, 0.2], [1.5, nan, nan, 0.0, 0.4]])
    found = estimate_prompts(means)
    assert found.reason_K.tolist() == [
        "every prompt has the same difference: no interval and no p",
        "one prompt: no interval and no p",
        "no pairs",
        None,
        None,
    ]
    assert np.isnan(found.error_K).tolist() == [True, True, True, False, False]
    assert np.isnan(found.p_K).tolist() == [True, True, True, False, False]
    low, high = found.interval(0.95)
    assert (low[3], high[3], found.p_K[3]) == (0, 0, 1), "the same images: no difference, and certainly"


def test_sign_flip_p_of_a_hand_computed_case() -> None:
    # Of the 8 sign patterns of (1, 2, 3), |sum| reaches 6 twice; for (-1, 2, 3) |sum| reaches 4 four times.
    p = sign_flip_p(np.array([[1.0, -1.0], [2.0, 2.0], [3.0, 3.0]]))
    assert p.tolist() == [2 / 8, 4 / 8]


def test_sign_flip_p_counts_ties_whatever_the_order_of_addition() -> None:
    values = np.array([0.1, 0.2, 0.3, -0.1, 0.7, 1e-3])
    p = [sign_flip_p(np.array(order)[:, None])[0] for order in itertools.permutations(values)]
    assert len(set(p)) == 1


def test_sign_flip_p_agrees_with_scipy_and_with_its_exact_value_when_sampled() -> None:
    values = normal(12, seed=3, mean=0.4)
    exact = sign_flip_p(values[:, None], patterns=4096)[0]
    theirs = scipy_stats.permutation_test(
        (values, np.zeros(12)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert exact == pytest.approx(theirs.pvalue)
    sampled = sign_flip_p(values[:, None], patterns=4095)[0]  # one too few to try all
    assert sampled == pytest.approx(exact, abs=0.03)
    assert sampled != exact
    assert sign_flip_p(np.full((20, 1), 5.0), patterns=100)[0] >= 1 / 101, "a sampled p is never 0"


def test_results_do_not_depend_on_the_company_of_a_contrast() -> None:
    means = normal(15, 600, seed=0)
    found = estimate_prompts(means, patterns=500, seed=7)
    for column in (0, 300, 599):
        alone = estimate_prompts(means[:, [column]], patterns=500, seed=7)
        assert alone.p_K[0] == found.p_K[column]
        assert alone.error_K[0] == pytest.approx(found.error_K[column], rel=1e-12)


def test_max_t_is_that_of_mne() -> None:
    # mne 1.13: permutation_t_test(x, n_permutations=511, tail=0, rng=0), which is single-step
    theirs = [0.99804, 0.99804, 0.07436, 0.88258, 0.60274, 0.41683]
    means = np.random.default_rng(1).normal(0.3, 1, size=(10, 6))
    assert max_t_p(means, step_down=False) == pytest.approx(theirs, abs=0.005)


def test_max_t_by_brute_force_steps_down_and_bears_missing_prompts() -> None:
    means = normal(8, 4, seed=5, mean=0.6)
    means[2, 1] = means[6, 3] = np.nan
    present = np.isfinite(means)

    def t(values: np.ndarray) -> np.ndarray:
        return np.abs(scipy_stats.ttest_1samp(values, 0, nan_policy="omit").statistic)

    observed = t(means)
    flipped = np.array(
        [t(means * np.array(signs)[:, None]) for signs in itertools.product([1, -1], repeat=8)]
    )
    left, floor, expected = list(np.argsort(-observed)), 0.0, np.zeros(4)
    while left:
        largest = flipped[:, left].max(axis=1)
        floor = expected[left[0]] = max(floor, np.mean(largest >= observed[left[0]] - 1e-9))
        left.pop(0)
    assert present.sum() == 30
    assert max_t_p(means) == pytest.approx(expected)
    assert np.all(max_t_p(means) <= max_t_p(means, step_down=False))


def test_max_t_of_one_contrast_is_its_own_p_and_without_prompts_there_is_none() -> None:
    means = normal(10, 1, seed=6)
    assert max_t_p(means) == pytest.approx(sign_flip_p(means))
    family = np.column_stack([means, np.full(10, np.nan), np.zeros(10)])
    p = max_t_p(family)
    assert p[0] == pytest.approx(sign_flip_p(means)[0])
    assert np.isnan(p[1]) and p[2] == 1
    assert np.isnan(max_t_p(np.full((5, 2), np.nan))).all()


def test_two_way_mean_squares_are_statsmodels() -> None:
    cells = normal(9, 5, 1, seed=7) + normal(9, 1, 1, seed=8) + normal(1, 5, 1, seed=9)
    found = estimate_crossed(cells, factor="noise")
    long = pd.DataFrame(
        [{"prompt": n, "noise": s, "d": cells[n, s, 0]} for n, s in np.ndindex(cells.shape[:2])]
    )
    mean_square = anova_lm(ols("d ~ C(prompt) + C(noise)", long).fit())["mean_sq"]
    prompt, noise, rest = (mean_square[key] for key in ("C(prompt)", "C(noise)", "Residual"))
    combined = prompt + noise - rest
    assert found.error_K[0] == pytest.approx(np.sqrt(combined / 45))
    assert found.freedom_K[0] == pytest.approx(combined**2 / (prompt**2 / 8 + noise**2 / 4 + rest**2 / 32))
    assert found.floor_K[0] == pytest.approx((noise - rest) / 45)
    p = 2 * scipy_stats.t.sf(abs(found.mean_K[0]) / found.error_K[0], found.freedom_K[0])
    assert found.p_K[0] == pytest.approx(p)
    assert (found.crossed, found.levels) == ("noise", 5)


def test_two_way_leaves_out_prompts_with_a_missing_level() -> None:
    cells = normal(8, 3, 4, seed=10)
    cells[2, 1, 0] = np.nan
    cells[:, :, 2] = 0.0
    cells[:, 0, 3] = np.nan
    found = estimate_crossed(cells, factor="training")
    short = estimate_crossed(np.delete(cells[:, :, :1], 2, axis=0), factor="training")
    assert found.prompts_K.tolist() == [7, 8, 8, 0]
    assert found.error_K[0] == short.error_K[0]
    assert (found.error_K[2], found.p_K[2]) == (0, 1)
    assert found.reason_K.tolist() == [None, None, None, "no pairs"]
    with pytest.raises(AssertionError, match="one level"):
        estimate_crossed(cells[:, :1], factor="training")


def test_six_prompts_carry_95_percent() -> None:
    assert [too_few(prompts, 0.95) for prompts in (2, 5, 6, 7)] == [True, True, False, False]
    assert too_few(7, 0.99) and not too_few(8, 0.99)
