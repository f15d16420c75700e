"""Ladders of guidance and the search for a matched guidance."""

import numpy as np
import pandas as pd
import pytest

from harness.results import Results
from harness.results.guidance import (
    effect_of_guidance,
    guidances_around,
    in_guidance_units,
    match_guidance,
    matched_statistics,
)
from tests.results.sweeps import ARM, make_tables

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


def test_where_a_match_is_looked_for() -> None:
    assert guidances_around(3.0) == (2.0, 5.0)
    assert guidances_around(3.7) == (2.35, 6.4)


def statistics_of(value: float | None, by: str) -> tuple[float | None, dict[float, float]]:
    """Of an arm with a score of `value` above that of its controls, but on the first prompt, lost there."""

    def score(arm: str, trial: str | None, prompt: int, seed: int, metric: str) -> float | None:
        if arm == ARM and (value is None or prompt == 0):
            return None
        return 10.0 * prompt + (value or 0.0) * (arm == ARM)

    frames = make_tables(score, trials=1, prompts={"dev": 3, "test": 2})
    images = frames["images"]
    measured = images["arm"].map({ARM: 3.2, "placebo": 2.0}).where(images["prompt_id"] == "dev001")
    images = images.assign(effective_guidance=measured, orthogonal_share=measured * 0)
    results = Results(
        trials=frames["trials"],
        arms=frames["arms"],
        images=images,
        scores=frames["scores"],
        summary=pd.DataFrame(),
        sweep={},
    )
    controls = {2.0: "d-placebo", 1.0: "d-baseline", 4.0: "d-failed"}
    return matched_statistics(results, own="d-t0", controls=controls, by=by)


def test_a_statistic_is_compared_on_the_pairs_that_are_there() -> None:
    """The lost prompt would raise the control's mean alone; a control without images has no statistic."""
    target, found = statistics_of(0.5, "saturation")
    assert target == pytest.approx(15.5)
    assert found == {2.0: pytest.approx(15.0), 1.0: pytest.approx(15.0)}
    assert statistics_of(None, "saturation") == (None, {})


def test_a_match_by_effective_guidance_reads_what_was_measured() -> None:
    assert statistics_of(0.5, "effective_guidance") == (3.2, {2.0: 2.0})
