"""The words, case by case. How often each is wrong: tests/benchmarks/test_error_rates.py."""

from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.weightstats import DescrStatsW

from harness.results.inference import Estimates, estimate_crossed, estimate_prompts, max_t_p
from harness.results.verdicts import (
    Losses,
    Rule,
    better_than_all,
    decide,
    detectable,
    fill_lost,
    prompts_to_decide,
    spent_p,
)

SPREAD = np.linspace(-1, 1, 24)[:, None]  # sd 0.61, error of the mean 0.125
RULE = Rule(margin=0.5)


def estimates(*means: float, spread: float = 1.0) -> Estimates:
    return estimate_prompts(SPREAD * spread + np.array(means))


def words(found: Estimates, rule: Rule = RULE, *, better: bool | None = True) -> list[str]:
    return decide(found, rule, higher_is_better=better)[0].tolist()


def test_the_four_words_and_the_direction_of_the_metric() -> None:
    found = estimates(0.8, -0.8, 0.1, 0.4)
    assert words(found) == ["better", "worse", "equivalent", "better"]
    assert words(found, better=False) == ["worse", "better", "equivalent", "worse"]
    assert words(found, better=None) == ["higher", "lower", "equivalent", "higher"]
    assert words(estimates(0.1, 0.2), Rule()) == ["undecided", "undecided"], "without a margin"
    assert words(estimates(0.4, spread=3.0)) == ["undecided"]


def test_a_difference_that_is_not_worth_having_is_equivalent() -> None:
    tiny = estimates(0.01, spread=1e-3)  # an adapter that does nothing measurable, the same way everywhere
    assert tiny.interval(0.95)[0][0] > 0
    assert words(tiny) == ["equivalent"]
    assert words(estimate_prompts(np.zeros((8, 1)))) == ["equivalent"], "the same images"


def test_equivalence_is_two_one_sided_tests() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        means = rng.normal(0.2, 1, size=20)
        p, _, _ = DescrStatsW(means).ttost_mean(-0.6, 0.6)
        decided, _ = decide(estimate_prompts(means[:, None]), Rule(margin=0.6), higher_is_better=True)
        assert (decided[0] == "equivalent") == (p < 0.05)


def test_interval_and_p_must_agree() -> None:
    found = estimates(0.8)
    assert words(replace(found, p_K=np.array([0.06]))) == ["undecided"]
    family = np.tile(SPREAD * 2, 40) + np.random.default_rng(1).normal(0, 0.01, size=(24, 40))
    family[:, 0] += 0.62
    alone = estimate_prompts(family)
    assert words(alone, Rule())[0] == "better"
    assert words(replace(alone, p_K=max_t_p(family)), Rule())[0] in ("better", "undecided")


def test_no_verdict_from_five_prompts_nor_from_a_few_shared_noises() -> None:
    word, reason = decide(estimate_prompts(SPREAD[:5] * 0.01 + 3), RULE, higher_is_better=True)
    assert (word[0], reason[0]) == ("undecided", "5 prompts are too few for a verdict at 95 %")
    cells = np.random.default_rng(2).normal(2, 0.1, size=(12, 8, 1))
    for levels, expected in ((7, "undecided"), (8, "better")):
        found = estimate_crossed(cells[:, :levels], factor="noise")
        word, reason = decide(found, RULE, higher_is_better=True)
        assert word[0] == expected
        assert (reason[0] is None) == (levels == 8)
    assert words(estimate_crossed(cells[:, :3], factor="training")) == ["better"]


def test_lost_pairs_count_against_whatever_is_claimed() -> None:
    rng = np.random.default_rng(3)
    control = rng.normal(5, 0.3, size=(24, 2, 1))
    arm = control + 0.25 + rng.normal(0, 0.3, size=control.shape)
    arm[:2, 0] = np.nan

    def losses(lowest: float, highest: float, share: float = 2 / 48) -> Losses:
        (low_arm, low_control), (high_arm, high_control) = fill_lost(
            arm, control, lowest=lowest, highest=highest
        )
        return Losses(
            lowest=estimate_prompts((low_arm - low_control).mean(axis=1)),
            highest=estimate_prompts((high_arm - high_control).mean(axis=1)),
            share_K=np.array([share]),
        )

    found = estimate_prompts(np.nanmean(arm - control, axis=1))
    cases = {"better": losses(4.5, 5.5), "undecided": losses(0.0, 10.0)}
    for expected, filled in cases.items():
        assert decide(found, Rule(), higher_is_better=True, losses=filled)[0][0] == expected
    mirrored = decide(found, Rule(), higher_is_better=False, losses=losses(4.5, 5.5))
    assert mirrored[0][0] == "worse"
    word, reason = decide(found, Rule(), higher_is_better=True, losses=losses(4.5, 5.5, share=0.11))
    assert (word[0], reason[0]) == ("undecided", "11 % of the pairs are lost: more than 10%")
    wide = Rule(margin=0.5)
    assert decide(found, wide, higher_is_better=True)[0][0] == "equivalent"
    assert decide(found, wide, higher_is_better=True, losses=losses(0, 10))[0][0] == "undecided"


def test_lost_scores_are_filled_at_the_extremes() -> None:
    nan = np.nan
    arm, control = np.array([1.0, nan, 2.0, nan]), np.array([1.0, 3.0, nan, nan])
    low, high = fill_lost(arm, control, lowest=0.0, highest=9.0)
    assert (low[0] - low[1]).tolist() == [0, -3, -7, -9]
    assert (high[0] - high[1]).tolist() == [0, 6, 2, 9]


def test_what_the_design_finds_and_what_would_decide_it() -> None:
    means = np.random.default_rng(4).normal(size=(48, 1))
    means = (means - means.mean()) / means.std(ddof=1)
    found = estimate_prompts(means + 0.2)
    assert detectable(found, Rule())[0] == pytest.approx(0.413, abs=0.002)
    assert prompts_to_decide(found, Rule()) == [199]  # what finds d = 0.2 with 80 %
    (needed,) = prompts_to_decide(found, Rule(margin=0.3))
    assert needed == 97  # of which 80 % call a difference of 0 equivalent
    assert prompts_to_decide(found, Rule(margin=1e-4)) == [None]
    assert prompts_to_decide(estimate_prompts(np.zeros((8, 1))), Rule()) == [None]


def test_more_prompts_do_not_lower_the_variance_between_trainings() -> None:
    rng = np.random.default_rng(5)
    cells = rng.normal(size=(24, 4, 1)) + np.array([-0.6, -0.1, 0.2, 0.5])[:, None]
    assert prompts_to_decide(estimate_crossed(cells, factor="training"), Rule(margin=0.3)) == [None]
    assert prompts_to_decide(estimate_crossed(cells, factor="training"), Rule(margin=3.0)) != [None]


def test_better_than_all_and_looks() -> None:
    assert better_than_all(["better", "better"])
    assert not better_than_all(["better", "undecided"]) and not better_than_all([])
    assert (spent_p(0.01, 1), spent_p(0.01, 3), spent_p(0.4, 3)) == (0.01, 0.03, 1.0)
