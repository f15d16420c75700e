"""A whole sweep, really run with `tracking: wandb`, read with W&B's own reader; and one that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.config.loading.load import load_sweep
from harness.config.schema.model import SdxlModel
from harness.results import Results, load
from tests.reporting.wandb_files import captions, content, offline_runs
from tests.sweeps.small import write_sweep

pytestmark = pytest.mark.slow
TRAINING = {"learning_rate": 0.01, "batch_size": 2, "steps": 4, "holdout": 1}
TRACKING = {"kind": "wandb", "live": True, "report": True}


def run(sweep: Path, workspace: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        command = ["harness", "run", str(sweep), "-w", str(workspace), "--executor", "local"]
        patch.setattr(sys, "argv", command)
        main_or_exit()


def main_or_exit() -> None:
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_config: SdxlModel, tiny_clip: str) -> Path:
    """The folder of a sweep that was run: steps 2 and 4 of one training."""
    workspace = tmp_path_factory.mktemp("really")
    changes = {"tracking": TRACKING, "training": TRAINING}
    run(write_sweep(workspace / "small.yaml", tiny_config, tiny_clip, **changes), workspace)
    return workspace / "sweeps" / "small"


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, dict[str, Any]]:
    return {run_id: content(path) for run_id, path in offline_runs(folder).items()}


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return load(folder)


def test_there_is_one_run_for_each_trial_control_and_sweep(
    runs: dict[str, dict[str, Any]], results: Results
) -> None:
    kinds = sorted(run["job_type"] for run in runs.values())
    assert kinds == ["control"] * 4 + ["sweep"] + ["trial"] * 2
    assert {run["state"] for run in runs.values()} == {"finished"}
    assert all("running" not in run["tags"] for run in runs.values())


def test_losses_stand_at_every_step_and_scores_where_it_was_scored(
    runs: dict[str, dict[str, Any]], results: Results
) -> None:
    trial = results.trials.set_index("training.steps").loc[4]
    run = runs[f"small-{trial['trial_id']}"]
    rows = [row for row in run["history"] if "train/loss" in row]
    assert [row["train/step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["train/validation_loss"] == pytest.approx(trial["validation_loss"])
    assert [row["train/step"] for row in rows if "eval/primary/difference" in row] == [2, 4]
    for arm in ("baseline", "placebo", "sham", "wrong_lora"):
        for metric in ("clip_score", "saturation"):
            assert f"eval/{metric}/{arm}" in rows[1] and f"eval/{metric}/{arm}" in rows[3]
    assert run["config"]["steps"] == 4 and "grid" in run["tags"]
    assert len(run["summary"]) <= 40 and "primary/difference" in run["summary"]


def test_images_are_in_the_same_order_everywhere_and_the_selected_trial_has_its_test_images(
    runs: dict[str, dict[str, Any]], results: Results
) -> None:
    orders: dict[str, list[list[list[str]]]] = {}
    for run in runs.values():
        for key, shown in captions(run["history"]).items():
            order = [caption.split(" · ")[:2] for caption in shown]
            orders.setdefault(key.split("/")[0], []).append(order)
    assert len(orders["images"]) == 8 and len(orders["test_images"]) == 5  # sham at 2 steps has none
    assert all(order == same[0] for same in orders.values() for order in same)
    (selected,) = results.trials.loc[results.trials["selected"], "trial_id"]
    assert "test_images/wrong_lora" in captions(runs[f"small-{selected}"]["history"])


def test_the_report_of_a_real_sweep_runs_it_again(folder: Path, tmp_path: Path) -> None:
    report = json.loads((folder / "wandb" / "report.json").read_text())
    (code,) = [block for block in report["spec"]["blocks"] if block["type"] == "code-block"]
    file = tmp_path / "small.json"
    file.write_text("\n".join(line["children"][0]["text"] for line in code["children"]))
    assert load_sweep(file).name == "small"


def test_the_next_steps_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["harness", "publish", str(folder), "--report"])
        main_or_exit()
    said = capsys.readouterr().out
    assert f"wandb sync {folder}/wandb/offline-run-*\n" in said
    assert f"wandb leet {folder}/wandb\n" in said and f"{folder}/wandb/report.json\n" in said


KILLED = """
import sys
from harness.reporting import wandb_live
wandb_live.POLL_SECONDS = 0.3
from harness.cli.main import main
main()
"""


def test_a_live_sweep_appears_while_it_runs_and_loses_nothing_when_its_driver_is_killed(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    training = {"learning_rate": 0.001, "batch_size": 2, "steps": 200}
    compute = {"batch_size": 1, "checkpoint_every": 5, "max_concurrent": 1}
    changes = {
        "tracking": {"kind": "wandb", "live": True},
        "training": training,
        "axes": {},
        "compute": compute,
    }
    sweep = write_sweep(tmp_path / "small.yaml", tiny_config, tiny_clip, **changes)
    folder = tmp_path / "sweeps" / "small"
    command = [sys.executable, "-c", KILLED, "run", str(sweep), "-w", str(tmp_path), "--executor", "local"]
    driver = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": os.getcwd()}, stdout=subprocess.DEVNULL
    )
    try:
        trial = wait_for(driver, lambda: _losses(folder, "small-"))
        assert "small-sweep" in offline_runs(folder)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    (before,) = [path for run_id, path in offline_runs(folder).items() if run_id == trial]
    sent = [row["train/step"] for row in content(before)["history"]]
    assert sent == list(range(1, len(sent) + 1)) and 0 < len(sent) < 200

    run(write_sweep(sweep, tiny_config, tiny_clip, **changes), tmp_path)
    assert not before.exists()
    rows = [row for row in content(offline_runs(folder)[trial])["history"] if "train/loss" in row]
    assert [row["train/step"] for row in rows] == list(range(1, 201))


def _losses(folder: Path, prefix: str) -> str | None:
    """The run of a trial that has shown losses, if there is one."""
    for run_id, path in offline_runs(folder).items():
        if run_id.startswith(prefix) and run_id != "small-sweep":
            rows = [row for row in content(path)["history"] if "train/loss" in row]
            if rows:
                return run_id
    return None


def wait_for(driver: subprocess.Popen[bytes], found: Callable[[], str | None]) -> str:
    end = time.monotonic() + 500
    while time.monotonic() < end:
        assert driver.poll() is None, "the sweep ended before it was seen"
        if (name := found()) is not None:
            return name
        time.sleep(0.5)
    raise AssertionError("nothing appeared")
