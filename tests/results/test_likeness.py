"""What differs is named by its dotted key."""

from harness.results.likeness import deviations


def test_each_setting_that_differs_is_named() -> None:
    arm = {"guidance": 3, "negative": "", "adapters": [{"scale": 1.0}]}
    placebo = {"guidance": 2, "negative": "", "adapters": []}
    assert deviations(arm, placebo, ignoring=["adapters"]) == (("guidance", 3, 2),)
    assert deviations(arm, placebo) == (("adapters.0.scale", 1.0, None), ("guidance", 3, 2))
    assert deviations(arm, arm) == ()


def test_a_sham_of_two_images_is_none() -> None:
    own = {"recipe": {"kind": "degrade", "count": 24}, "training": {"steps": 200, "seed": 0}}
    sham = {"recipe": {"kind": "plain", "count": 2}, "training": {"steps": 200, "seed": 0}}
    assert deviations(own, sham, ignoring=["recipe.kind"]) == (("recipe.count", 24, 2),)
    assert deviations({"a": None}, {}) == (), "a setting that is not given is None"
    assert deviations({"ab": 1, "a": 1}, {}, ignoring=["a"]) == (("ab", 1, None),), "whole keys"
