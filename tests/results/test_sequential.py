"""Boundaries against published tables; looks stop what is decided and nothing else."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.results.inference import estimate_prompts
from harness.results.sequential import boundary_levels, crossing_probability, follow, look, plan_looks


def test_boundaries_are_the_published_ones() -> None:
    # Jennison & Turnbull 2000, tables 2.1 and 2.3, α = 0.05, equal steps
    for looks, pocock, obrien in ((2, 2.178, 1.977), (3, 2.289, 2.004), (5, 2.413, 2.040)):
        prompts = tuple(range(1, looks + 1))
        levels = np.array(boundary_levels(prompts, alpha=0.05))
        assert scipy_stats.norm.isf(levels / 2) == pytest.approx(np.full(looks, pocock), abs=1e-3)
        last = boundary_levels(prompts, alpha=0.05, shape="obrien_fleming")[-1]
        assert scipy_stats.norm.isf(last / 2) == pytest.approx(obrien, abs=1e-3)
    assert boundary_levels((24, 48, 96), alpha=0.05) == pytest.approx([0.0208] * 3, abs=1e-4)
    assert boundary_levels((7,), alpha=0.05) == pytest.approx([0.05])


def test_crossing_probability_is_that_of_a_bivariate_normal() -> None:
    fraction, bounds = np.array([0.3, 1.0]), np.array([2.2, 2.0])
    covariance = [[1, 0.3**0.5], [0.3**0.5, 1]]
    inside = scipy_stats.multivariate_normal(cov=covariance).cdf(bounds, lower_limit=-bounds)
    assert crossing_probability(fraction, bounds) == pytest.approx(1 - inside, abs=1e-5)


def test_looks_are_at_a_quarter_a_half_and_all() -> None:
    looks = plan_looks(48, margin=0.2)
    assert looks.prompts == (12, 24, 48)
    assert looks.levels == boundary_levels((12, 24, 48), alpha=1 - 0.95)
    assert all(wide > strict for wide, strict in zip(looks.equivalence_levels, looks.levels, strict=True))
    assert plan_looks(50).prompts == (13, 25, 50)


def test_each_contrast_stops_when_it_is_decided() -> None:
    looks = plan_looks(48, margin=0.5)
    noise = np.random.default_rng(0).normal(size=(48, 1))
    columns = [noise + 3, noise - 3, 0.05 * noise, noise * 3 + 0.5]
    course = follow(np.column_stack(columns), looks)
    assert course.sign_K[:3].tolist() == [1, -1, 0] and np.isnan(course.sign_K[3])
    assert course.look_K.tolist() == [0, 0, 0, 2]
    assert course.prompts_K.tolist() == [12, 12, 12, 48]
    alone = look(estimate_prompts(columns[0][:12]), looks, 0)
    assert alone[0] == course.sign_K[0]


def test_a_look_is_stricter_than_a_fixed_test() -> None:
    noise = np.random.default_rng(1).normal(size=(24, 400)) + 0.45
    first = estimate_prompts(noise)
    claims = np.isfinite(look(first, plan_looks(96), 0)).mean()
    assert 0 < claims < np.mean(first.p_K <= 0.05)
