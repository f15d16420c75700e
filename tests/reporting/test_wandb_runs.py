"""What a tracker is given: one run per trial, nothing null, every missing number with its reason."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.diffusion.training.record import RECORD
from harness.errors import ArtifactError
from harness.reporting.wandb_runs import Run, side_by_side, sweep_run, trial_runs
from harness.results import Results
from harness.store.workspace import Workspace
from tests.reporting.report import example


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mirror")


@pytest.fixture(scope="module")
def results(workspace: Path) -> Results:
    """One recipe, ranks 4 and 16, 100 and 200 steps; trial 2 failed."""
    sweep = example.config(
        axes={"adapter.rank": [4, 16], "training.steps": [100, 200]}, n_prompts=12, seeds=(0,)
    )
    return example.build(workspace, sweep, gain=2.0)


@pytest.fixture(scope="module")
def runs(results: Results, workspace: Path) -> list[Run]:
    return list(trial_runs(results, Workspace(workspace), images_per_trial=3))


def test_every_trial_is_a_run_of_the_sweeps_group(runs: list[Run], results: Results) -> None:
    assert [run.run_id for run in runs] == [f"example-{trial_id}" for trial_id in results.trials["trial_id"]]
    assert {(run.group, run.job_type) for run in runs} == {("example", "trial")}
    assert runs[1].name == "rank=4 steps=200"
    assert runs[1].config["axes"] == {"adapter/rank": 4, "training/steps": 200}
    assert runs[1].config["adapter"]["rank"] == 4 and runs[1].config["training"]["prompt"] == "wrong"


def test_contrasts_and_scores_are_the_tables(runs: list[Run], results: Results) -> None:
    row = results.summary.query("control == 'sham' and metric == 'clip_score' and split == 'dev'").iloc[1]
    summary = next(run for run in runs if run.run_id.endswith(row["trial_id"])).summary
    key = "contrast/dev/wrong_lora/sham/clip_score"
    assert summary[f"{key}/difference"] == row["mean_difference"]
    assert (summary[f"{key}/ci_low"], summary[f"{key}/p_adjusted"]) == (row["ci_low"], row["p_adjusted"])
    wide = results.wide()
    mean = wide[(wide["arm"] == "placebo") & (wide["split"] == "dev")]["saturation"].mean()
    assert summary["score/dev/placebo/saturation"] == pytest.approx(mean)


def test_a_failed_trial_has_its_reason_and_no_number(runs: list[Run]) -> None:
    failed = runs[2]
    assert failed.failed and not any(run.failed for run in (runs[0], runs[1], runs[3]))
    assert failed.summary["status"] == "failed" and "NaN at step 61" in str(failed.summary["reason"])
    assert "final_loss" not in failed.summary
    assert failed.losses == () and failed.strips == ()
    contrast = "contrast/dev/wrong_lora/placebo/aesthetic"
    assert f"{contrast}/difference" not in failed.summary
    assert "NaN at step 61" in str(failed.summary[f"{contrast}/reason"])


def test_nothing_null_is_handed_on(runs: list[Run]) -> None:
    for run in runs:
        assert all(isinstance(value, bool | int | float | str) for value in run.summary.values())
        json.dumps(run.summary, allow_nan=False)


def test_losses_are_those_of_the_training_record(runs: list[Run]) -> None:
    assert [len(run.losses) for run in runs] == [100, 200, 0, 200]
    assert runs[1].losses[0] == pytest.approx(0.28) and runs[1].losses[-1] < 0.1


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_finished_adapter_without_its_record_is_an_error(
    fault: str, results: Results, workspace: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(workspace, tmp_path / "copy")
    file = copy / results.trials["adapter_path"].dropna().iloc[0] / RECORD
    if fault == "missing":
        file.unlink()
    else:
        file.write_text("{")
    with pytest.raises(ArtifactError, match=RECORD):
        list(trial_runs(results, Workspace(copy), images_per_trial=0))


def test_strips_are_the_first_pairs_with_controls_first(
    runs: list[Run], results: Results, workspace: Path
) -> None:
    first = runs[0].strips[0]
    assert len(runs[0].strips) == 3
    assert first.caption.startswith("a fox on a beach (seed 0), aesthetic, left to right: baseline ")
    arms = results.images.set_index("path").loc[list(first.paths), "arm"].to_list()
    assert arms == ["baseline", "placebo", "sham", "wrong_lora"]
    sheet = side_by_side(Workspace(workspace), first)
    assert sheet is not None and sheet.size == (4 * 64 + 3 * 2, 64)
    last = np.asarray(Image.open(workspace / first.paths[-1]))
    assert np.array_equal(np.asarray(sheet)[:, -64:], last)


def test_the_digest_follows_the_content(runs: list[Run], results: Results, workspace: Path) -> None:
    again = list(trial_runs(results, Workspace(workspace), images_per_trial=3))
    assert [run.digest() for run in again] == [run.digest() for run in runs]
    fewer = next(trial_runs(results, Workspace(workspace), images_per_trial=2))
    assert fewer.digest() != runs[0].digest()


def test_the_sweeps_run_has_tables_counts_and_the_selected_trial(results: Results, workspace: Path) -> None:
    run = sweep_run(results, Workspace(workspace))
    assert run.run_id == "example-sweep" and run.job_type == "sweep" and run.report is None
    assert (run.summary["trials/completed"], run.summary["trials/failed"]) == (3, 1)
    assert run.summary["selected_trial"] in set(results.trials["trial_id"])
    assert len(run.tables["summary"]) == len(results.summary)
    assert {row["status"] for row in run.tables["trials"]} == {"completed", "failed"}
