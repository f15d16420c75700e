"""Searches that are no grid have figures of their own, and the importance they show is real."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.reporting.report.figures.effects import MOST_LINES, dose_response
from harness.reporting.report.figures.search import importance, search_figures
from harness.reporting.report.figures.svg import look
from harness.reporting.report.page import render
from harness.results import Results
from harness.results.study import Study
from harness.store.workspace import Workspace
from tests.reporting.report import example
from tests.reporting.report.test_figures import words


@pytest.fixture(scope="module")
def searched(results: Results) -> Results:
    """The grid's trials, as if a search had asked for them."""
    sweep = {**results.sweep, "search": {"kind": "random", "trials": 12}}
    return Results(**{**vars(results), "sweep": sweep})


def test_a_random_search_has_scatter_parallel_coordinates_and_importance(
    searched: Results, workspace: Path
) -> None:
    found = search_figures(Study(searched))
    assert [figure.title for figure in found] == [
        "Effect over each axis",
        "All axes at once",
        "Importance of the axes",
    ]
    for figure in found:
        assert {"rank", "steps"} <= set(words(figure.svg))
    page = render(searched, Workspace(workspace))
    assert page.count('aria-label="Parallel coordinates of all trials."') == 1


def test_a_grid_has_none(study: Study) -> None:
    assert search_figures(study) == []


def test_several_objectives_have_a_pareto_front(results: Results) -> None:
    objectives = [
        {"kind": "contrast", "metric": metric, "arm": "wrong_lora", "control": "placebo"}
        for metric in ("aesthetic", "clip_score")
    ]
    search = {"kind": "optuna", "trials": 12, "objectives": objectives}
    study = Study(Results(**{**vars(results), "sweep": {**results.sweep, "search": search}}))
    assert search_figures(study)[-1].title == "Pareto front"
    assert "gain in CLIP score" in words(search_figures(study)[-1].svg)


@pytest.mark.parametrize("sign", [1, -1])
def test_importance_finds_the_axis_that_matters(searched: Results, sign: int) -> None:
    study = Study(searched)
    rng = np.random.default_rng(1)
    steps = rng.choice([50.0, 100.0, 200.0], 60)
    table = pd.DataFrame(
        {
            "training.steps": steps,
            "adapter.rank": rng.choice([4.0, 16.0], 60),
            "recipe": rng.choice(["keywords", "damaged"], 60),
            "difference": sign * steps / 100 + rng.normal(0, 0.2, 60),
        }
    )
    rows = importance(study, table, ["adapter.rank", "recipe", "training.steps"])
    assert rows[0].axis == "training.steps" and rows[0].low > rows[0].chance > 0
    assert all(row.value < 0.35 and row.low <= row.value <= row.high for row in rows[1:])


def test_no_two_lines_look_alike() -> None:
    looks = [tuple(look(place).values()) for place in range(36)]
    assert len(set(looks)) == 36


def test_many_lines_become_small_multiples(tmp_path_factory: pytest.TempPathFactory) -> None:
    ranks = tuple(range(1, MOST_LINES + 2))
    axes = {"adapter.rank": ranks, "training.steps": (50, 100, 200)}
    folder = tmp_path_factory.mktemp("many")
    results = example.build(folder, example.config(n_prompts=4, seeds=(0,), axes=axes), failed=())
    text = words(dose_response(Study(results)))
    assert {f"rank {rank}" for rank in ranks} <= set(text)
