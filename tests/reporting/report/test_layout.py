"""Where trials stand, for any number and kind of axes."""

from typing import Any

import pytest

from harness.reporting.report.layout import Layout, layout
from harness.results.study import Study
from tests.reporting.report import example

KEYWORDS = {"kind": "keywords", "keywords": ["blurry", "noisy"]}
OTHERS = {"kind": "keywords", "keywords": ["ugly"]}


def laid_out(axes: dict[str, Any]) -> tuple[Study, Layout | None]:
    study = Study(example.outline(example.config(axes=axes)))
    return study, layout(study)


def test_two_numeric_axes_make_a_grid_per_recipe(study: Study) -> None:
    grid = layout(study)
    assert grid is not None
    assert (grid.x, grid.y) == ("training.steps", "adapter.rank")
    assert (grid.x_labels, grid.y_labels) == (("50", "100", "200"), ("4", "16"))
    assert [panel.title for panel in grid.panels] == ["keywords", "damaged"]
    trials = study.results.trials.set_index("trial_id")
    for panel in grid.panels:
        for rank, row in zip((4, 16), panel.cells, strict=True):
            for steps, trial_id in zip((50, 100, 200), row, strict=True):
                found = trials.loc[trial_id]
                assert (found["recipe"], found["adapter.rank"], found["training.steps"]) == (
                    panel.title,
                    rank,
                    steps,
                )


@pytest.mark.parametrize(
    ("axes", "x", "y", "panels"),
    [
        ({"adapter.rank": [2, 4]}, "adapter.rank", None, [""]),
        ({"recipe": [KEYWORDS, OTHERS | {"name": "ugly"}]}, "recipe", None, [""]),
        (
            {"recipe": [KEYWORDS, OTHERS | {"name": "ugly"}], "adapter.rank": [2, 4]},
            "adapter.rank",
            "recipe",
            [""],
        ),
        (
            {"adapter.rank": [2, 4], "training.seed": [0, 1], "training.steps": [1, 2]},
            "training.steps",
            "adapter.rank",
            ["seed 0", "seed 1"],
        ),
    ],
)
def test_any_axes_find_a_place(axes: dict[str, Any], x: str, y: str | None, panels: list[str]) -> None:
    study, grid = laid_out(axes)
    assert grid is not None
    assert (grid.x, grid.y, [panel.title for panel in grid.panels]) == (x, y, panels)
    placed = [trial for panel in grid.panels for row in panel.cells for trial in row]
    assert sorted(map(str, placed)) == sorted(study.results.trials["trial_id"])


def test_recipes_of_one_name_stay_apart() -> None:
    study, grid = laid_out({"recipe": [KEYWORDS, OTHERS], "adapter.rank": [2, 4]})
    assert grid is not None
    placed = [trial for panel in grid.panels for row in panel.cells for trial in row]
    assert sorted(map(str, placed)) == sorted(study.results.trials["trial_id"])
    assert len(set(study.labels.values())) == 4


def test_nothing_varies_nothing_is_laid_out() -> None:
    study, grid = laid_out({})
    assert grid is None
    assert list(study.labels.values()) == ["trial 0"]


def test_an_axis_that_is_not_applied_has_a_column_of_its_own() -> None:
    only_lora = {"values": [4, 16], "when": {"adapter.kind": "lora"}}
    study, grid = laid_out({"adapter.kind": ["lora", "dora"], "adapter.rank": only_lora})
    assert grid is not None
    assert (grid.x, grid.x_labels, grid.y_labels) == ("adapter.rank", ("4", "16", "—"), ("lora", "dora"))
    assert [[cell is None for cell in row] for row in grid.panels[0].cells] == [
        [False, False, True],
        [True, True, False],
    ]
    assert list(study.labels.values()) == ["kind lora · rank 4", "kind lora · rank 16", "kind dora"]


def test_more_trials_than_anyone_looks_over_make_no_grid() -> None:
    """A grid of 2,000 trials took minutes to lay out."""
    _, grid = laid_out({"training.seed": list(range(301))})
    assert grid is None
    _, grid = laid_out({"training.seed": list(range(300))})
    assert grid is not None
