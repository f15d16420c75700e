"""The loss of every run is on the page, whether or not images were held out."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.reporting.report.figures.losses import RunLosses, loss_curves, run_losses, smoothed
from harness.results.study import Study
from harness.store.workspace import Workspace
from tests.reporting.report.test_figures import words


def test_every_run_has_the_losses_of_its_longest_checkpoint(study: Study, workspace: Path) -> None:
    runs = run_losses(study, Workspace(workspace))
    trained = study.results.trials.dropna(subset=["adapter_path"])
    assert len(runs) == trained["run_id"].nunique() and sum(run.selected for run in runs) == 1
    longest = trained.groupby("run_id", sort=False)["training.steps"].max()
    assert [len(run.training) for run in runs] == [int(steps) for steps in longest]
    assert {run.label for run in runs} >= {"keywords · rank 16", "damaged · rank 4"}


def test_a_record_that_is_gone_leaves_its_run_out(study: Study, tmp_path: Path) -> None:
    assert run_losses(study, Workspace(tmp_path)) == [] and loss_curves([]) is None


def test_training_alone_has_one_panel_and_held_out_images_another(study: Study, workspace: Path) -> None:
    runs = run_losses(study, Workspace(workspace))
    text = words(loss_curves(runs))
    assert "training" in text and "held-out images" not in text and "damaged · rank 4" in text
    text = words(loss_curves([replace(run, validation={50: 0.3, 200: 0.2}) for run in runs]))
    assert {"training", "held-out images"} <= set(text)


def test_many_runs_are_grey_but_for_the_selected() -> None:
    runs = [
        RunLosses(label=f"run {place}", selected=place == 3, training=(0.5,) * 40, validation={})
        for place in range(12)
    ]
    assert [word for word in words(loss_curves(runs)) if word.startswith("run ")] == ["run 3"]


def test_points_are_means_of_the_steps_before() -> None:
    steps, means = smoothed(tuple(float(step) for step in range(1, 101)), most=10)
    assert steps[-1] == 100 and len(steps) <= 10
    assert means[-1] == pytest.approx((96 + 97 + 98 + 99 + 100) / 5)
    assert smoothed((2.0, 4.0), most=50) == ([1, 2], [2.0, 4.0])
