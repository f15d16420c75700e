"""The statistics keep their error rates: the small form of `python -m benchmarks.error_rates`."""

from collections.abc import Iterator

import pytest

from benchmarks import error_rates
from benchmarks.error_rates import Rate, summary, table

SAMPLES = 4_000  # three standard errors are 1.0 point at 5 %, 0.75 at 2.5 %
FEWER = 2_000  # where there are many lines


def broken(rates: Iterator[Rate]) -> list[Rate]:
    return [rate for rate in rates if not rate.kept]


@pytest.mark.parametrize("name", ["verdicts", "power", "missing", "trainings", "ledger"])
def test_every_bar_is_kept(name: str) -> None:
    assert broken(error_rates.SIMULATIONS[name](SAMPLES)) == []


def test_three_looks_err_as_one() -> None:
    assert broken(error_rates.sequential(FEWER)) == []


def test_noises_are_the_prompts_own() -> None:
    assert broken(error_rates.noises(FEWER, prompts=(12, 48))) == []


def test_intervals_cover_and_the_test_keeps_its_level() -> None:
    assert broken(error_rates.coverage(SAMPLES, prompts=(6, 12, 48))) == []


def test_a_family_of_comparisons_errs_as_one() -> None:
    assert broken(error_rates.family(300, grids=((12, 4),), prompts=(24,))) == []
    assert broken(error_rates.family_power(60)) == []


def test_a_broken_bar_is_marked() -> None:
    rates = [
        Rate(what="a", case="b", value=5.04, low=4, high=6),
        Rate(what="a", case="c", value=7, high=6),
        Rate(what="a", case="d", value=7, low=8),
    ]
    assert [rate.kept for rate in rates] == [True, False, False]
    lines = table(rates).splitlines()[2:]
    assert lines[0] == "| a | b | 5.0 | 4 to 6 |"
    assert lines[1] == "| a | c | 7.0 ✗ | at most 6 |"
    assert lines[2].endswith("at least 8 |")
    both = summary([rates[1], Rate(what="a", case="e", value=5, high=6), rates[2]]).splitlines()[2:]
    assert both == ["| a | 2, c … e | 5.0 to 7.0 ✗ | at most 6 |", "| a | d | 7.0 ✗ | at least 8 |"]
