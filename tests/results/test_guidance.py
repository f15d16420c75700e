"""Ladders of guidance and the search for a matched guidance."""

import numpy as np
import pytest

from harness.results.guidance import effect_of_guidance, in_guidance_units, match_guidance

LADDER = {2.25: 0.31, 2.5: 0.58, 3.0: 0.85}


def test_effects_in_guidance_units() -> None:
    assert in_guidance_units(0.20, LADDER, own=2.0) == pytest.approx(2.16, abs=0.005)
    assert in_guidance_units(0.0, LADDER, own=2.0) == 2.0
    assert in_guidance_units(0.58, LADDER, own=2.0) == pytest.approx(2.5)
    assert in_guidance_units(0.9, LADDER, own=2.0) is None
    assert in_guidance_units(-0.1, LADDER, own=2.0) is None
    bent = {1.0: 0.4, 3.0: 0.4, 4.0: -0.2}
    assert in_guidance_units(0.2, bent, own=2.0) in (1.5, 2.5)


def test_a_margin_from_the_ladder() -> None:
    assert effect_of_guidance(0.1, LADDER, own=2.0) == pytest.approx(0.124)
    assert effect_of_guidance(-0.1, LADDER, own=2.0) is None


@pytest.mark.parametrize("arm", [2.05, 2.6, 3.0, 5.9])
@pytest.mark.parametrize("falling", [False, True])
def test_a_matched_guidance_is_found_in_five_draws(arm: float, falling: bool) -> None:
    def statistic(guidance: float) -> float:
        return (-1 if falling else 1) * (1 - np.exp(-(guidance - 1) / 1.5))

    known: dict[float, float] = {}
    draws = 5
    while (step := match_guidance(known, statistic(arm), between=(2.0, 6.0), draws=draws)).found is None:
        assert step.draw_next is not None
        known[step.draw_next] = statistic(step.draw_next)
        draws -= 1
    assert draws >= 0
    span = abs(statistic(6.0) - statistic(2.0))
    assert abs(statistic(step.found) - statistic(arm)) <= 0.02 * span


def test_controls_that_are_there_cost_no_draw_and_what_is_out_of_reach_is_said() -> None:
    known = {2.0: 0.0, 2.5: 0.5, 3.0: 1.0}
    assert match_guidance(known, 0.995, between=(2.0, 3.0)).found == 3.0
    out = match_guidance(known, 1.2, between=(2.0, 3.0)).not_reachable
    assert out is not None and "from 0 to 1, and the arm has 1.2" in out
    late = match_guidance(known, 0.7, between=(2.0, 3.0), draws=0).not_reachable
    assert late is not None and "after the last draw" in late
