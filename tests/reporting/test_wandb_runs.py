"""What a tracker is given: runs of trials, controls and the sweep; no null, each gap with its reason."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ArtifactError
from harness.reporting.wandb_runs import Run, all_runs, flat_names
from harness.results import Results
from harness.store.training_record import RECORD
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
def every(results: Results, workspace: Path) -> list[Run]:
    return all_runs(results, Workspace(workspace), images_per_arm=3)


@pytest.fixture(scope="module")
def runs(every: list[Run]) -> list[Run]:
    return [run for run in every if run.job_type == "trial"]


def test_every_trial_is_a_run_of_the_sweeps_group(runs: list[Run], results: Results) -> None:
    assert [run.run_id for run in runs] == [f"example-{trial_id}" for trial_id in results.trials["trial_id"]]
    assert {run.group for run in runs} == {"example"}
    assert runs[1].name == "rank=4 steps=200"
    assert (runs[1].config["rank"], runs[1].config["steps"], runs[1].config["trial"]) == (4, 200, 1)
    assert runs[1].config["trial_config"]["adapter"]["rank"] == 4
    assert {run.tags[-2:] for run in runs} == {("completed", "grid"), ("failed", "grid")}
    assert ["selected" in run.tags for run in runs] == results.trials["selected"].to_list()


def test_a_config_key_is_the_end_of_an_axis_unless_two_share_it() -> None:
    assert flat_names(
        ["adapter.rank", "recipe", "training.optimizer.kind", "training.seed", "recipe.seed"]
    ) == {
        "adapter.rank": "rank",
        "recipe": "recipe",
        "training.optimizer.kind": "training_optimizer_kind",
        "training.seed": "training_seed",
        "recipe.seed": "recipe_seed",
    }


def test_the_summary_is_short_and_headed_by_the_contrast_of_the_selection(
    runs: list[Run], results: Results
) -> None:
    row = results.summary.query("control == 'placebo' and metric == 'aesthetic' and split == 'dev'").iloc[1]
    summary = next(run for run in runs if run.run_id.endswith(row["trial_id"])).summary
    parts = ["difference", "ci_low", "ci_high", "p", "win_rate", "n_prompts"]
    assert list(summary)[:6] == [f"primary/{part}" for part in parts]
    assert summary["primary/difference"] == row["mean_difference"]
    assert summary["primary/verdict"] == row["verdict"]
    assert (summary["primary/p"], summary["primary/n_prompts"]) == (row["p_adjusted"], row["n_prompts"])
    assert all(len(run.summary) <= 30 for run in runs)
    selected = next(run for run in runs if run.summary["selected"])
    test = results.summary.query("control == 'placebo' and metric == 'aesthetic' and split == 'test'").iloc[0]
    assert selected.summary["test/difference"] == test["mean_difference"]
    assert not any("test/difference" in run.summary for run in runs if run is not selected)


def test_all_contrasts_are_a_table_with_the_axes_in_front(runs: list[Run], results: Results) -> None:
    trial = results.trials.iloc[1]
    rows = runs[1].tables["contrasts"]
    assert len(rows) == (results.summary["trial_id"] == trial["trial_id"]).sum()
    assert list(rows[0])[:3] == ["trial_id", "rank", "steps"] and rows[0]["steps"] == 200


def test_scores_stand_at_the_steps_at_which_the_training_was_scored(
    runs: list[Run], results: Results
) -> None:
    rows = {row["train/step"]: row for row in runs[1].history}
    assert list(rows) == list(range(1, 201))
    assert [step for step, row in rows.items() if "eval/primary/difference" in row] == [100, 200]
    wide = results.wide().query("split == 'dev'")
    for step, trial in ((100, 0), (200, 1)):
        own = wide[wide["trial_id"] == results.trials["trial_id"].iloc[trial]]
        assert rows[step]["eval/aesthetic/wrong_lora"] == pytest.approx(own["aesthetic"].mean())
    placebo = wide[wide["arm"] == "placebo"]["saturation"].mean()
    assert rows[100]["eval/saturation/placebo"] == pytest.approx(placebo)
    assert [len(run.history) for run in runs] == [100, 200, 0, 200]
    assert rows[1]["train/loss"] == pytest.approx(0.28) and rows[200]["train/loss"] < 0.1


def test_a_failed_trial_has_its_reason_and_no_number(runs: list[Run]) -> None:
    failed = runs[2]
    assert failed.failed and not any(run.failed for run in (runs[0], runs[1], runs[3]))
    assert failed.summary["status"] == "failed" and "NaN at step 61" in str(failed.summary["reason"])
    assert "final_loss" not in failed.summary and "primary/difference" not in failed.summary
    assert failed.history == () and failed.images == {}
    assert "NaN at step 61" in str(failed.summary["primary/reason"])


def test_nothing_null_is_handed_on(every: list[Run]) -> None:
    for run in every:
        assert all(isinstance(value, bool | int | float | str) for value in run.summary.values())
        json.dumps([run.summary, run.history, run.config], allow_nan=False)


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
        all_runs(results, Workspace(copy), images_per_arm=0)


def test_a_control_is_a_run_for_each_of_its_settings(every: list[Run], results: Results) -> None:
    controls = {run.name: run for run in every if run.job_type == "control"}
    sham = [f"sham rank={rank} steps={steps}" for rank in (4, 16) for steps in (100, 200)]
    assert sorted(controls) == sorted(["baseline", "placebo", *sham])
    assert controls["sham rank=4 steps=200"].config["rank"] == 4
    wide = results.wide().query("arm == 'placebo' and split == 'test'")
    assert controls["placebo"].summary["test/aesthetic"] == pytest.approx(wide["aesthetic"].mean())


def test_a_metrics_name_is_its_key(results: Results, workspace: Path) -> None:
    """In the example every name is the kind's; here the last metric is of another kind."""
    *others, last = results.sweep["metrics"]
    named = replace(results, sweep={**results.sweep, "metrics": [*others, {**last, "kind": "sharpness"}]})
    runs = all_runs(named, Workspace(workspace), images_per_arm=0)
    control = next(run for run in runs if run.job_type == "control")
    assert f"dev/{last['name']}" in control.summary and "dev/sharpness" not in control.summary


def test_an_arm_has_one_key_with_the_same_prompts_in_all_runs(every: list[Run], results: Results) -> None:
    prompts = [prompt["text"] for prompt in results.sweep["prompts"] if prompt["split"] == "dev"]
    seen: dict[str, Any] = {}
    for run in every:
        for key, images in run.images.items():
            seen.setdefault(key, []).append([image.caption.split(" · ")[:2] for image in images])
    assert set(seen) == {
        *(f"images/{arm}" for arm in ("baseline", "placebo", "sham", "wrong_lora")),
        *(f"test_images/{arm}" for arm in ("baseline", "placebo", "sham", "wrong_lora")),
    }
    dev = [order for key, orders in seen.items() if key.startswith("images/") for order in orders]
    assert all(order == [[prompt, "seed 0"] for prompt in prompts[:3]] for order in dev)
    owners = [run.run_id for run in every if "test_images/wrong_lora" in run.images]
    assert owners == [run.run_id for run in every if run.summary.get("selected") is True]


def test_a_missing_image_keeps_its_place(results: Results, workspace: Path) -> None:
    own = results.images["arm"] == "wrong_lora"
    first = results.images[own & (results.images["prompt"] == results.sweep["prompts"][0]["text"])]
    fewer = results.images[~results.images["image_id"].isin(first["image_id"])]
    run = all_runs(replace(results, images=fewer), Workspace(workspace), images_per_arm=3)[1]
    shown = run.images["images/wrong_lora"]
    assert [image.path is None for image in shown] == [True, False, False]
    assert shown[0].caption.endswith("no image")


def test_the_digest_follows_the_content(every: list[Run], results: Results, workspace: Path) -> None:
    again = all_runs(results, Workspace(workspace), images_per_arm=3)
    assert [run.digest() for run in again] == [run.digest() for run in every]
    fewer = all_runs(results, Workspace(workspace), images_per_arm=2)
    assert fewer[0].digest() != every[0].digest()


def test_the_sweeps_run_has_tables_counts_the_selected_trial_and_the_page(
    results: Results, workspace: Path, tmp_path: Path
) -> None:
    copy = Workspace(tmp_path)
    page = copy.sweep("example") / "report.html"
    page.parent.mkdir(parents=True)
    shutil.copytree(workspace / "adapters", tmp_path / "adapters")
    without = all_runs(results, copy, images_per_arm=0)[-1]
    assert without.run_id == "example-sweep" and without.job_type == "sweep" and without.page is None
    assert (without.summary["trials/completed"], without.summary["trials/failed"]) == (3, 1)
    assert without.summary["selected_trial"] in set(results.trials["trial_id"])
    assert len(without.tables["contrasts"]) == len(results.summary)
    digests = {without.digest()}
    for text in ("<p>one</p>", "<p>two</p>"):
        page.write_text(text)
        digests.add(all_runs(results, copy, images_per_arm=0)[-1].digest())
    assert len(digests) == 3
