"""Power and variance components, against statsmodels and known answers."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower

from harness.results.inference import estimate_crossed, estimate_prompts
from harness.results.power import (
    Components,
    Design,
    components_of,
    detectable_in_errors,
    equivalence_in_errors,
    fewest,
)

UNIT = Components(prompt=1.0, noise=None, training=None, prompt_training=None, residual=None)
FULL = Components(prompt=0.3, noise=0.2, training=0.1, prompt_training=0.05, residual=0.4)


@pytest.mark.parametrize(("prompts", "effect"), [(12, 0.89), (24, 0.60), (48, 0.41), (96, 0.29)])
def test_the_effect_that_a_design_finds(prompts: int, effect: float) -> None:
    assert Design(prompts=prompts).detectable(UNIT) == pytest.approx(effect, abs=0.02)


@pytest.mark.parametrize("effect", [0.3, 0.5, 0.8])
def test_power_and_prompts_are_statsmodels(effect: float) -> None:
    theirs = TTestPower()
    for prompts in (12, 24, 96):
        # statsmodels counts the wrong direction too
        expected = theirs.power(effect, prompts, 0.05)
        assert Design(prompts=prompts).power(effect, UNIT) == pytest.approx(expected, abs=2e-3)
    needed = Design(prompts=2).prompts_for(effect, UNIT)
    assert needed == int(np.ceil(theirs.solve_power(effect, None, 0.05, 0.8)))


def test_equivalence_in_errors_is_the_power_of_two_one_sided_tests() -> None:
    # |mean| must stay below margin − t·error; with 10⁵ degrees of freedom that is normal
    margin = equivalence_in_errors(1e5)
    inside = margin - scipy_stats.norm.ppf(0.95)
    assert scipy_stats.norm.cdf(inside) - scipy_stats.norm.cdf(-inside) == pytest.approx(0.8, abs=1e-4)
    assert detectable_in_errors(1e5) == pytest.approx(2.8016, abs=1e-3)


def test_noises_and_trainings_share_out_the_variance() -> None:
    one = Design(prompts=48, noises=4)
    assert one.variance(FULL) == pytest.approx((0.3 + 0.05) / 48 + 0.2 / 192 + 0.4 / 192)
    setting = replace(one, trainings=4)
    assert setting.variance(FULL) == pytest.approx(0.3 / 48 + 0.2 / 192 + 0.4 / 768 + 0.1 / 4 + 0.05 / 192)
    assert 3 <= setting.freedom(FULL) < 8 < one.freedom(FULL) == 47
    with pytest.raises(ValueError, match="one training"):
        setting.variance(replace(FULL, training=None))


def test_more_prompts_cannot_replace_trainings() -> None:
    assert Design(prompts=2, trainings=2).prompts_for(0.2, FULL) is None
    assert Design(prompts=2, noises=2).prompts_for(0.2, FULL) is not None


def test_components_of_hand_made_pilots() -> None:
    rng = np.random.default_rng(0)
    prompt, training = rng.normal(size=(6, 1, 1)), rng.normal(size=(1, 1, 3))
    found = components_of(prompt + training + np.zeros((6, 2, 3)))
    assert found.prompt == pytest.approx(prompt.var(ddof=1))
    assert found.training == pytest.approx(training.var(ddof=1))
    assert (found.noise, found.prompt_training, found.residual) == pytest.approx((0, 0, 0), abs=1e-12)
    noise = rng.normal(size=(6, 2, 1))
    found = components_of(noise + np.zeros((6, 2, 3)))
    assert found.noise == pytest.approx(noise.var(axis=1, ddof=1).mean())


def test_a_smaller_pilot_says_which_variances_it_cannot_tell() -> None:
    cells = np.random.default_rng(1).normal(size=(12, 3, 4))
    full = components_of(cells)
    assert None not in (full.noise, full.training, full.prompt_training, full.residual)
    one_training = components_of(cells[:, :, :1])
    assert one_training.training is None and one_training.noise is None
    one_noise = components_of(cells[:, :1])
    assert one_noise.noise is None and one_noise.training is not None
    single = components_of(cells[:, :1, :1])
    assert single.prompt == pytest.approx(cells[:, 0, 0].var(ddof=1))
    cells[0, 0, 0] = np.nan
    assert components_of(cells) == components_of(cells[1:])
    with pytest.raises(ValueError, match="two prompts"):
        components_of(cells[:2])


def test_the_error_of_a_pilots_own_design_is_that_of_its_analysis() -> None:
    """What is planned is what `estimate_crossed` will compute from the same numbers."""
    rng = np.random.default_rng(2)
    shapes = ((20, 1, 1), (20, 3, 1), (1, 1, 4), (20, 1, 4), (20, 3, 4))
    cells = np.sum([np.broadcast_to(rng.normal(size=shape), (20, 3, 4)) for shape in shapes], axis=0)
    found = components_of(cells)
    two_way = estimate_crossed(cells.mean(axis=1)[:, :, None], factor="training")
    design = Design(prompts=20, noises=3, trainings=4)
    assert np.sqrt(design.variance(found)) == pytest.approx(two_way.error_K[0])
    assert design.freedom(found) == pytest.approx(two_way.freedom_K[0])
    one_way = estimate_prompts(cells[:, :, 0].mean(axis=1)[:, None])
    of_one = components_of(cells[:, :, :1])
    assert np.sqrt(Design(prompts=20, noises=3).variance(of_one)) == pytest.approx(one_way.error_K[0])


def test_fewest() -> None:
    for answer in (2, 3, 17, 64, 65, 99_999, 100_000):
        assert fewest(answer.__le__) == answer
    assert fewest(lambda number: number < 0) is None
