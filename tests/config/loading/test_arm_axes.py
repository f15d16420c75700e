"""One arm with axes stands for several, and a fault names the arm, the axis and the value."""

from pathlib import Path
from typing import Any

import pytest

from harness.config.loading.load import expanded_arms
from harness.config.plan.plan import expand
from harness.errors import ConfigError
from tests.config.example import load

LORA = {"name": "lora", "negative": "wrong", "adapters": [{"branch": "negative"}]}


def arms(**axes: Any) -> list[dict[str, Any]]:
    names = {"scale": "adapters.0.scale", "branch": "adapters.0.branch"}
    return [{**LORA, "axes": {names.get(name, name): values for name, values in axes.items()}}]


def test_an_arm_per_point_the_last_axis_fastest() -> None:
    points = expanded_arms([{"name": "placebo"}, *arms(scale=[0.5, 1.0], branch=["negative", "both"])])
    assert [point["name"] for point in points] == [
        "placebo",
        "lora-scale-0.5-branch-negative",
        "lora-scale-0.5-branch-both",
        "lora-scale-1.0-branch-negative",
        "lora-scale-1.0-branch-both",
    ]
    assert [point["adapters"][0] for point in points[1:3]] == [
        {"branch": "negative", "scale": 0.5},
        {"branch": "both", "scale": 0.5},
    ]
    assert points[2]["family"] == "lora" and points[2]["params"] == {"scale": 0.5, "branch": "both"}
    assert "axes" not in points[1] and LORA["adapters"] == [{"branch": "negative"}]


def test_words_become_a_name() -> None:
    points = expanded_arms(arms(negative=["wrong", "bad, ugly (very)"]))
    assert [point["name"] for point in points] == ["lora-negative-wrong", "lora-negative-bad_ugly_very_"]


def test_two_adapters_scales_keep_their_places_in_the_name() -> None:
    arm = {"name": "two", "adapters": [{}, {}], "axes": {"adapters.0.scale": [1], "adapters.1.scale": [2]}}
    assert expanded_arms([arm])[0]["name"] == "two-adapters.0.scale-1-adapters.1.scale-2"


def test_a_curve_trains_nothing_more(tmp_path: Path) -> None:
    one = expand(load(tmp_path, arms=[{"name": "placebo"}, LORA]))
    curve = expand(load(tmp_path, arms=[{"name": "placebo"}, *arms(scale=[0.5, 1.0, 2.0])]))
    assert curve.runs.keys() == one.runs.keys()
    assert len(curve.arms) == len(one.arms) + 2 * len(one.trials)


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        ({}, "arms.lora.axes: must be a mapping"),
        ({"adapters.0.scale": 1}, "arms.lora.axes.adapters.0.scale: must be a list of at least 1"),
        ({"adapters.0.scale": []}, "arms.lora.axes.adapters.0.scale: must be a list of at least 1"),
        ({"adapters.1.scale": [1]}, "arms.lora.axes.adapters.1.scale: there is no '1'"),
        ({"name": ["a"]}, "arms.lora.axes: a name is not varied"),
        (
            {"adapters.0.scael": [1]},
            'arms.lora.axes: {"adapters.0.scael": 1}: adapters[0].scael is not known; '
            "did you mean adapters[0].scale?",
        ),
        (
            {"adapters.0.branch": ["up"]},
            'arms.lora.axes: {"adapters.0.branch": "up"}: adapters[0].branch: "up" is not allowed: must be',
        ),
    ],
)
def test_a_fault_says_where(axes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expanded_arms([{**LORA, "axes": axes}])
    assert str(caught.value).startswith(line)


def test_two_points_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="arms must differ; given twice: lora-scale-1"):
        load(tmp_path, arms=[{"name": "placebo"}, *arms(scale=[1, 1])])
