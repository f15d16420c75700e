"""W&B offline, for real: what its own files hold afterwards."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from harness.cli.main import main
from harness.config.schema.model import SdxlModel
from harness.config.schema.sweep import NoTracking, WandbTracking
from harness.errors import HarnessError, TrackingError
from harness.reporting import wandb_tracker as tracking
from harness.reporting.wandb_tracker import make_tracker
from harness.results import Results, load
from harness.store.workspace import Workspace
from tests.reporting import wandb_server
from tests.reporting.report import example
from tests.reporting.wandb_files import captions, content, offline_runs
from tests.sweeps.small import write_sweep

OFFLINE = WandbTracking(project="tests", images_per_trial=2)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def results(workspace: Path) -> Results:
    """Ranks 4 and 16; trial 1 failed. A page lies beside the tables."""
    sweep = example.config(axes={"adapter.rank": [4, 16]}, n_prompts=12, seeds=(0,))
    results = example.build(workspace, sweep, gain=2.0, failed=(1,))
    (workspace / "sweeps" / "example" / "report.html").write_text("<p>the page</p>")
    return results


@pytest.fixture(scope="module")
def published(results: Results, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    make_tracker(OFFLINE, folder=folder).publish(results, Workspace(workspace))
    return folder


def test_there_is_a_run_per_trial_per_control_and_one_for_the_sweep(
    published: Path, results: Results
) -> None:
    ids = [f"example-{trial_id}" for trial_id in results.trials["trial_id"]]
    arms = results.arms[results.arms["is_control"].astype(bool)]
    controls = {f"example-control-{arm_id}" for arm_id in arms["arm_id"]}
    assert len(controls) == 4 and set(offline_runs(published)) == {*ids, *controls, "example-sweep"}


def test_a_trials_run_holds_its_config_losses_contrast_and_images(published: Path, results: Results) -> None:
    trial_id = results.trials["trial_id"].iloc[0]
    folder = offline_runs(published)[f"example-{trial_id}"]
    found = content(folder)
    assert (found["run_id"], found["group"], found["name"]) == (f"example-{trial_id}", "example", "rank=4")
    assert (found["project"], found["job_type"], found["state"]) == ("tests", "trial", "finished")
    assert sorted(found["tags"]) == ["completed", "grid", "selected"]
    assert found["config"]["rank"] == 4 and found["config"]["trial_config"]["adapter"]["rank"] == 4
    losses = [(row["train/step"], row["train/loss"]) for row in found["history"] if "train/loss" in row]
    assert [step for step, _ in losses] == list(range(1, 201))
    assert losses[0][1] > losses[-1][1]
    row = results.summary.query(
        "trial_id == @trial_id and control == 'placebo' and metric == 'aesthetic' and split == 'test'"
    ).iloc[0]
    assert found["summary"]["test/difference"] == pytest.approx(row["mean_difference"])
    assert found["summary"]["status"] == "completed" and found["summary"]["selected"] is True
    assert len(found["summary"]) <= 40 and not [key for key in found["summary"] if key.startswith("train/")]
    shown = captions(found["history"])
    assert set(shown) == {
        f"{key}/{arm}" for key in ("images", "test_images") for arm in ("placebo", "wrong_lora")
    }
    assert len(shown["images/wrong_lora"]) == 2
    files = [path for path in (folder / "files" / "media" / "images").rglob("*") if path.is_file()]
    assert len(files) == 8 and all(Image.open(path).format == "WEBP" for path in files)


def test_images_of_the_store_are_shown_as_they_are(
    published: Path, results: Results, workspace: Path
) -> None:
    trial_id = results.trials["trial_id"].iloc[0]
    media = offline_runs(published)[f"example-{trial_id}"] / "files" / "media" / "images" / "images"
    shown = [np.asarray(Image.open(path).convert("RGB")) for path in media.glob("wrong_lora*")]
    first = results.images[results.images["trial_id"] == trial_id].iloc[0]["path"]
    wanted = np.asarray(Image.open(workspace / first).convert("RGB"))
    assert any(np.array_equal(image, wanted) for image in shown)


def test_a_failed_trial_is_a_failed_run_with_its_reason(published: Path, results: Results) -> None:
    found = content(offline_runs(published)[f"example-{results.trials['trial_id'].iloc[1]}"])
    assert found["exit_code"] == 1
    assert found["summary"]["status"] == "failed" and "NaN at step 61" in found["summary"]["reason"]
    assert not [row for row in found["history"] if "train/loss" in row] and not captions(found["history"])


def test_the_sweeps_run_holds_the_tables_and_the_page(published: Path, results: Results) -> None:
    folder = offline_runs(published)["example-sweep"]
    (html,) = (folder / "files" / "media" / "html").iterdir()
    assert html.read_text() == "<p>the page</p>"
    tables = {
        path.name.split("_")[0]: json.loads(path.read_text())
        for path in (folder / "files" / "media" / "table").iterdir()
    }
    assert len(tables["contrasts"]["data"]) == len(results.summary)
    at = tables["trials"]["columns"].index("final_loss")
    assert tables["trials"]["data"][1][at] is None


def test_publishing_twice_changes_nothing(published: Path, results: Results, workspace: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in published.rglob("*.wandb")}
    make_tracker(OFFLINE, folder=published).publish(results, Workspace(workspace))
    assert {path: path.stat().st_mtime_ns for path in published.rglob("*.wandb")} == before


def test_a_changed_trial_is_replaced_and_a_synced_one_kept(
    results: Results, workspace: Path, tmp_path: Path
) -> None:
    tracker = make_tracker(WandbTracking(images_per_trial=0), folder=tmp_path)
    tracker.publish(results, Workspace(workspace))
    first = offline_runs(tmp_path)
    ids = [f"example-{trial_id}" for trial_id in results.trials["trial_id"]]
    synced = first[ids[1]] / f"run-{ids[1]}.wandb.synced"
    synced.touch()
    time.sleep(1.1)  # W&B names a run's folder by the second
    tracker.publish(replace(results, trials=results.trials.assign(train_seconds=9.0)), Workspace(workspace))
    assert not first[ids[0]].exists() and offline_runs(tmp_path)[ids[0]].is_dir()
    assert synced.exists() and len(list((tmp_path / "wandb").glob(f"offline-run-*-{ids[1]}"))) == 2
    assert content(offline_runs(tmp_path)[ids[0]])["summary"]["train_seconds"] == 9.0


def test_it_is_quiet_and_leaves_nothing_elsewhere(
    results: Results,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    before = dict(os.environ)
    make_tracker(OFFLINE, folder=tmp_path / "folder").publish(results, Workspace(workspace))
    assert capfd.readouterr() == ("", "")
    assert not list(home.rglob("*"))
    assert dict(os.environ) == before


def test_a_failure_is_one_line_of_a_harness_error(results: Results, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("in the way")
    with pytest.raises(TrackingError) as caught:
        make_tracker(OFFLINE, folder=tmp_path).publish(results, Workspace(workspace))
    assert isinstance(caught.value, HarnessError)
    assert str(caught.value).startswith("W&B: ") and "\n" not in str(caught.value)


def test_online_without_a_key_says_what_to_do(
    results: Results, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(TrackingError, match="not logged in; run `wandb login`"):
        make_tracker(WandbTracking(mode="online"), folder=tmp_path).publish(results, Workspace(workspace))


def test_a_settings_error_is_shown_with_its_reason(
    results: Results, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    with pytest.raises(TrackingError, match="mode") as caught:
        make_tracker(OFFLINE, folder=tmp_path).publish(results, Workspace(workspace))
    assert len(str(caught.value)) < 300


def test_it_says_what_to_do_next(results: Results, workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    published = make_tracker(OFFLINE, folder=folder).publish(results, Workspace(workspace))
    sync, leet = published.next_steps
    assert sync == f"wandb sync '{folder}/wandb'/offline-run-*" and leet == f"wandb leet '{folder}/wandb'"
    arguments = sync.removeprefix("wandb sync ")
    command = f"{sys.executable} -m wandb sync --dry-run {arguments}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout + done.stderr).count(".wandb") == len(offline_runs(folder))


def test_no_tracking_does_nothing(results: Results, workspace: Path, tmp_path: Path) -> None:
    make_tracker(NoTracking(), folder=tmp_path).publish(results, Workspace(workspace))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "told"),
    [
        (wandb_server.mute, "Failed to authenticate"),
        (wandb_server.refusing, "Failed to authenticate"),
        (wandb_server.falling_silent, "Timed out finishing"),
    ],
)
def test_a_sweep_does_not_care_whether_wandb_answers(
    server: Callable[[], AbstractContextManager[str]],
    told: str,
    tmp_path: Path,
    tiny_config: SdxlModel,
    tiny_clip: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "INIT_SECONDS", 8.0)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 4.0)
    monkeypatch.setattr(tracking, "REQUEST_SECONDS", 2.0)
    monkeypatch.setattr(tracking, "REQUEST_RETRIES", 1)
    prompts = [{"text": "a green cat", "split": "dev"}, {"text": "a yellow hat", "split": "dev"}]
    online = {"kind": "wandb", "mode": "online"}
    changes = {"tracking": online, "axes": {}, "prompts": prompts}
    sweep = write_sweep(tmp_path / "small.yaml", tiny_config, tiny_clip, **changes)
    monkeypatch.setattr(
        sys, "argv", ["harness", "run", str(sweep), "-w", str(tmp_path), "--executor", "local"]
    )
    with server() as address, suppress(SystemExit):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        main()
    out, said = capfd.readouterr()
    (warning,) = [line for line in said.splitlines() if "W&B" in line]
    assert "the tables and the page are complete, `harness publish` tries again" in warning
    assert told in warning
    assert "Traceback" not in said and "wandb:" not in out + said
    assert (load(tmp_path / "sweeps/small").trials["status"] == "completed").all()
    assert (tmp_path / "sweeps/small/report.html").is_file()
    assert not [process for process in psutil.process_iter() if talks_to(address, process)]


def talks_to(address: str, process: psutil.Process) -> bool:
    """Whether it was started to: a process that outlives the one that was given up."""
    with suppress(psutil.Error):
        started = process.environ().get("WANDB_BASE_URL") == address
        return started and "resource_tracker" not in " ".join(process.cmdline())
    return False
