"""What counts as seen, and that the file which page and card read is of the judge that is shipped."""

import json
from typing import get_args

import pytest

from benchmarks.known_directions import JUDGES, SEVERITIES, Change, change, unseen
from harness.config.schema.recipe import DegradationName
from harness.metrics import build_metrics
from harness.metrics.weights import KNOWN_DIRECTIONS, unseen_damages

STEADY = [[-1.0, -1.2, -0.8], [-2.0, -2.2, -1.8], [-3.0, -3.1, -2.9]]


def test_a_change_is_mean_and_effect_by_severity() -> None:
    found = change(STEADY)
    assert found["mean"] == [-1.0, -2.0, -3.0]
    assert found["effect"] == [-5.0, -10.0, -30.0]


@pytest.mark.parametrize(
    ("mean", "effect", "reason"),
    [
        ([-1.0, -2.0, -3.0], [-5, -10, -30], None),
        ([0.1, -2.0, -3.0], [0.5, -10, -30], "the score rises from none to 0.1"),
        ([-1.0, -2.0, -1.5], [-5, -10, -15], "the score rises from severity 0.4 to 0.8"),
        ([-0.1, -0.6, -3.0], [-0.1, -0.2, -30], "at severity 0.4 it costs 0.2 standard deviations"),
        ([-0.1, -0.15, -0.2], [-5, -10, -30], "at severity 0.4 it costs 0.15, the median damage 2.00"),
    ],
)
def test_what_counts_as_seen(mean: list[float], effect: list[float], reason: str | None) -> None:
    usual = change(STEADY)
    changes = {"a": usual, "b": usual, "tried": Change(mean=mean, effect=effect)}
    assert unseen(changes) == {"a": None, "b": None, "tried": reason}


def test_the_shipped_judge_was_measured() -> None:
    """After new weights: python -m benchmarks.known_directions --write."""
    written = json.loads(KNOWN_DIRECTIONS.read_text())
    judges = build_metrics(JUDGES, device="cpu").metrics
    assert set(written) == {judge.weights_hash for judge in judges}
    for judge in judges:
        damages = written[judge.weights_hash]["damages"]
        assert set(damages) == set(get_args(DegradationName))
        assert all(len(found["mean"]) == len(SEVERITIES) for found in damages.values())
        reasons = unseen(damages)
        assert reasons == {name: found["unseen"] for name, found in damages.items()}
        assert unseen_damages(judge.weights_hash) == {name: why for name, why in reasons.items() if why}


def test_other_weights_were_not_measured() -> None:
    assert unseen_damages("0" * 16) is None and unseen_damages(None) is None
