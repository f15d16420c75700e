from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.config.plan.plan import expand
from harness.config.schema.adapter import LowRankAdapter, TextualInversion
from harness.errors import ConfigError
from tests.config.example import load

RATE, RANK = "training.learning_rate", "adapter.rank"
RATES = {"low": 1e-5, "high": 1e-2, "log": True}
RANKS = {"low": 2, "high": 32}


def params(folder: Path, axes: dict[str, Any], **search: Any) -> list[dict[str, Any]]:
    return [t.params for t in expand(load(folder, axes=axes, search=search or {"kind": "grid"})).trials]


def drawn(folder: Path, axes: dict[str, Any], trials: int, seed: int = 0) -> list[dict[str, Any]]:
    return params(folder, axes, kind="random", trials=trials, seed=seed)


def message(folder: Path, axes: dict[str, Any], **search: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        params(folder, axes, **search)
    return str(caught.value).replace(f"{folder}/x.yaml: ", "")


def test_random_trials_are_as_many_as_asked_for_all_different_and_the_same_each_time(tmp_path: Path) -> None:
    axes = {RATE: RATES, RANK: [2, 8]}
    found = drawn(tmp_path, axes, 12)
    assert len(found) == len({tuple(point.values()) for point in found}) == 12
    assert drawn(tmp_path, axes, 12) == found
    assert drawn(tmp_path, axes, 12, seed=1) != found


def test_more_random_trials_begin_with_the_same_ones(tmp_path: Path) -> None:
    axes = {RATE: RATES, RANK: RANKS}
    assert drawn(tmp_path, axes, 30)[:10] == drawn(tmp_path, axes, 10)


def test_another_axis_moves_no_other_axis_values(tmp_path: Path) -> None:
    alone = [point[RATE] for point in drawn(tmp_path, {RATE: RATES}, 10)]
    beside = [point[RATE] for point in drawn(tmp_path, {RANK: RANKS, RATE: RATES}, 10)]
    assert alone == beside


def test_a_range_is_covered_from_end_to_end(tmp_path: Path) -> None:
    found = drawn(tmp_path, {RATE: RATES, RANK: RANKS}, 300)
    orders = Counter(f"{point[RATE]:.0e}"[-1] for point in found)
    assert all(1e-5 <= point[RATE] <= 1e-2 for point in found)
    assert all(orders[order] > 60 for order in "543")  # each order of magnitude about as often
    assert {point[RANK] for point in found} == set(range(2, 33))
    assert all(type(point[RANK]) is int for point in found)


def test_a_range_with_a_step(tmp_path: Path) -> None:
    axes = {
        "adapter.dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
        RANK: {"low": 4, "high": 20, "step": 8},
    }
    found = drawn(tmp_path, axes, 12)
    assert {point["adapter.dropout"] for point in found} == {0.0, 0.1, 0.2, 0.3}
    assert {point[RANK] for point in found} == {4, 12, 20}


def test_the_field_says_whether_a_range_is_whole(tmp_path: Path) -> None:
    axes = {"training.max_grad_norm": {"low": 1, "high": 3}, RANK: {"low": 2.0, "high": 8.0}}
    found = drawn(tmp_path, axes, 20)
    assert any(point["training.max_grad_norm"] % 1 for point in found)
    assert all(type(point[RANK]) is int for point in found)


def test_all_points_of_lists_are_found_and_no_more_are_asked_for(tmp_path: Path) -> None:
    axes = {RANK: [2, 4, 8, 16], "training.seed": [0, 1, 2, 3]}
    assert len(drawn(tmp_path, axes, 16)) == 16
    assert message(tmp_path, axes, kind="random", trials=17) == (
        "search.trials: 17 are asked for, and the axes have 16 points; allowed: at most 16, or more values"
    )


def test_a_conditional_axis_is_null_where_it_is_not_applied_and_its_doubles_are_one_trial(
    tmp_path: Path,
) -> None:
    axes = {
        "adapter.kind": ["lora", "dora"],
        RANK: {"values": [2, 8], "when": {"adapter.kind": "dora"}},
        "training.steps": [100, 200],
    }
    plan = expand(load(tmp_path, axes=axes))
    assert [tuple(trial.params.values()) for trial in plan.trials] == [
        ("lora", None, 100),
        ("lora", None, 200),
        ("dora", 2, 100),
        ("dora", 2, 200),
        ("dora", 8, 100),
        ("dora", 8, 200),
    ]
    ranks = [t.config.adapter.rank for t in plan.trials if isinstance(t.config.adapter, LowRankAdapter)]
    assert ranks == [8, 8, 2, 2, 8, 8]  # where it is not applied: as the sweep says without axes


def test_a_null_that_is_a_value_is_told_from_an_axis_that_is_not_applied(tmp_path: Path) -> None:
    axes = {
        "training.min_snr_gamma": [None, 5],
        "adapter.kind": ["lora", "dora"],
        RANK: {"values": [2], "when": {"adapter.kind": "dora"}},
    }
    plan = expand(load(tmp_path, axes=axes))
    assert [tuple(trial.params.values()) for trial in plan.trials] == [
        ("none", "lora", None),
        ("none", "dora", 2),
        (5, "lora", None),
        (5, "dora", 2),
    ]
    trained = [trial.config.trained.training.min_snr_gamma for trial in plan.trials]
    assert trained == [None, None, 5, 5]


def test_a_condition_looks_into_whole_sections_and_behind_other_conditions(tmp_path: Path) -> None:
    axes = {
        "adapter.vectors": {"values": [2, 3], "when": {"adapter.kind": "textual_inversion"}},
        "training.ema": {"values": [0.9, 0.99], "when": {"adapter.vectors": [3]}},
        "adapter": [{"dropout": 0.1}, {"kind": "textual_inversion"}],  # the first is a lora by default
        RANK: {"values": [2, 4], "when": {"adapter.kind": ["lora", "dora"]}},
    }
    plan = expand(load(tmp_path, axes=axes))
    kinds = [
        (
            t.config.adapter.vectors if isinstance(t.config.adapter, TextualInversion) else t.params[RANK],
            t.config.trained.training.ema,
        )
        for t in plan.trials
    ]
    assert sorted(kinds, key=str) == sorted([(2, None), (3, 0.9), (3, 0.99), (2, None), (4, None)], key=str)


def test_a_random_search_applies_conditions_too(tmp_path: Path) -> None:
    axes = {
        "training.optimizer.kind": ["adamw", "prodigy"],
        "training.optimizer.d_coef": {
            "low": 0.5,
            "high": 2.0,
            "when": {"training.optimizer.kind": "prodigy"},
        },
        RATE: RATES,
    }
    found = drawn(tmp_path, axes, 40)
    by_kind = {
        kind: [p for p in found if p["training.optimizer.kind"] == kind] for kind in ("adamw", "prodigy")
    }
    assert all(by_kind.values())
    assert all(point["training.optimizer.d_coef"] is None for point in by_kind["adamw"])
    assert all(0.5 <= point["training.optimizer.d_coef"] <= 2 for point in by_kind["prodigy"])


@pytest.mark.parametrize(
    ("axes", "search", "line"),
    [
        (
            {RANK: RANKS},
            {},
            "axes.adapter.rank: a grid takes every value, and a range is not a list; "
            "give the values, or search: {kind: random, trials: N}",
        ),
        (
            {RANK: {"low": 0, "high": 8}},
            {"kind": "random", "trials": 3},
            "axes.adapter.rank.low: 0 is not allowed: must be ≥ 1",
        ),
        ({RANK: {"low": 8, "high": 2}}, {}, "axes.adapter.rank: low must be below high"),
        ({RANK: {"low": 8, "hihg": 2}}, {}, "axes.adapter.rank.high is missing"),
        (
            {RANK: {"valeus": [2], "when": {"adapter.kind": "lora"}}},
            {},
            "axes.adapter.rank.values is missing",
        ),
        (
            {RANK: {"values": [2, 0], "when": {"adapter.kind": "lora"}}},
            {},
            "axes.adapter.rank.values[1]: 0 is not allowed: must be ≥ 1",
        ),
        (
            {RANK: {"values": [2], "when": {"adapter.knid": "lora"}}},
            {},
            "axes.adapter.rank.when.adapter.knid is not known; did you mean "
            "axes.adapter.rank.when.adapter.kind, ",
        ),
        (
            {RANK: {"values": [2], "when": {"training.optimizer.kind": "prodigy"}}},
            {},
            'axes.adapter.rank.when.training.optimizer.kind: never holds; it takes "adamw"',
        ),
        (
            {
                RANK: {"values": [2, 4], "when": {"training.seed": 1}},
                "training.seed": {"values": [0, 1], "when": {RANK: 2}},
            },
            {},
            "axes: conditions wait for each other: ",
        ),
        (
            {
                "training.optimizer.kind": ["adamw", "prodigy"],
                "training.optimizer.d_coef": {"low": 0.5, "high": 2.0},
            },
            {"kind": "random", "trials": 3},
            "axes.training.optimizer.kind[0] with axes.training.optimizer.d_coef.low: training.optimizer: "
            "d_coef is prodigy's, and adamw does not use it; remove it",
        ),
        ({}, {"kind": "random"}, "search.trials is missing"),
        (
            {},
            {"kind": "randm"},
            "search.kind: randm is not known; did you mean random? allowed: grid, optuna, random",
        ),
    ],
)
def test_faults_name_the_key_and_what_is_allowed(
    tmp_path: Path, axes: dict[str, Any], search: dict[str, Any], line: str
) -> None:
    assert message(tmp_path, axes, **search).splitlines()[0].startswith(line)
