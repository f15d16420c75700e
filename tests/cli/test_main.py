"""The command line as a user meets it: what it prints, how it leaves, what an interruption costs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness import results
from harness.config.schema.model import SdxlModel
from tests.cli.command import harness
from tests.config.example import changed
from tests.limits import HANGS
from tests.sweeps.small import write_sweep


@pytest.fixture
def sweep(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> Path:
    return write_sweep(tmp_path / "small.yaml", tiny_config, tiny_clip)


def test_check_prints_the_plan_and_makes_nothing(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "w"
    assert harness("check", sweep, "--workspace", workspace) == 0
    printed = capsys.readouterr().out
    assert "2 trials · 2 training runs · 2 datasets" in printed
    assert "training steps" in printed
    said = " ".join(printed.split())
    assert "training runs: 1 for the trials (trials that differ in training.steps alone are" in said
    assert "1 for adapters of control arms" in said
    assert "2 dev and 1 test prompts × 2 seeds" in said
    assert not workspace.exists()


def test_check_says_what_controls_add_and_what_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = changed(
        model={"kind": "emoji"},
        arms=[
            {"name": "wrong_lora", "negative": "wrong", "adapters": [{}]},
            {"name": "low", "negative": "bad"},
        ],
        controls="standard",
    )
    sweep["arms"][1]["guidance"] = 1
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(sweep))
    assert harness("check", tmp_path / "x.yaml", "--workspace", tmp_path / "w") == 0
    printed = capsys.readouterr().out
    # one image of baseline and of placebo, one of each sham (2 ranks x 2 lengths); twice for the seeds
    added = "adds baseline, placebo and sham: 2 training runs, 12 dev images and 6 test images more"
    assert f"controls: standard {added}" in printed
    assert "warning: the negative prompt does nothing in low: no step is guided" in printed


def test_a_pipe_loses_no_character(sweep: Path) -> None:
    """Fifty trials with values of many letters: every row whole, whatever COLUMNS says."""
    long, steps = "wrong" + 12 * " image", list(range(2, 102, 2))
    axes = ("--set", f"axes.training.steps={steps}", "--set", f"axes.training.prompt=[{long!r}]")
    done = subprocess.run(
        [sys.executable, "-c", "from harness.cli.main import main; main()", "check", sweep, *axes],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "60"},
    )
    assert done.stderr == ""
    rows = [line for line in done.stdout.splitlines() if long in line]
    assert len(rows) == len(steps) and "…" not in done.stdout
    assert all(len(row.split()[1]) == 16 for row in rows), "ids are whole"


def test_check_speaks_to_machines(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("check", sweep, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [trial["training.steps"] for trial in plan["trials"]] == [2, 4]
    assert plan["training steps"] == {"asked": 8, "missing": 8, "passes": 8 * 2 * 3}
    assert plan["adapter images"]["asked"] == 2 * 2 * 4
    assert plan["latents"]["missing"] == 4 + 3 and plan["prompt embeddings"]["missing"] == 3 + 2
    assert plan["training_runs_of_trials"] == 1 and plan["prompts"] == {"dev": 2, "test": 1}
    assert plan["name"] == "small" and plan["question"]
    assert {arm["name"]: arm["is_control"] for arm in plan["arms"]} == {
        "baseline": True,
        "placebo": True,
        "sham": True,
        "wrong_lora": False,
    }
    assert plan["runs_of_one_length"] == {} and "estimate" not in plan


def test_check_says_which_runs_share_no_steps(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("check", sweep, "--json", "--set", "training.schedule={'kind': 'cosine'}") == 0
    plan = json.loads(capsys.readouterr().out)
    assert set(plan["runs_of_one_length"].values()) == {"cosine"}
    assert len(plan["runs_of_one_length"]) == plan["training_runs"] == 4
    assert harness("check", sweep, "--set", "training.schedule={'kind': 'cosine'}") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(trials 0, 1): a cosine schedule depends on the length of the run" in said


def test_check_estimates_from_past_timings_alone(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--workspace", tmp_path / "w")
    assert harness("check", sweep, *where, "--estimate") == 0
    printed = capsys.readouterr().out
    assert "no past timings" in printed and "How long it takes is not known" in printed
    assert "passes of a row" in " ".join(printed.split())
    assert harness("run", sweep, *where, "--executor", "local") == 0
    capsys.readouterr()
    assert harness("check", sweep, *where, "--estimate") == 0
    assert "Nothing is left to train or generate" in capsys.readouterr().out
    longer = ("check", sweep, *where, "--estimate", "--set", "axes.training.steps=[2, 4, 200]")
    assert harness(*longer) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no past timings" not in printed and "CPU-hours" in printed
    assert "on 1 worker (compute.max_concurrent)" in printed
    assert harness(*longer, "--json") == 0
    estimate = json.loads(capsys.readouterr().out)["estimate"]
    assert estimate["complete"] and estimate["seconds"] > 0
    assert estimate["shares"]["training steps"]["timings"] == 2


def test_run_then_again_then_extended(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("run", sweep, "--workspace", tmp_path / "w", "--executor", "local")
    assert harness(*run) == 0
    printed = capsys.readouterr().out
    report = tmp_path / "w" / "sweeps" / "small" / "report.html"
    folder = report.parent
    *_, page, tables, lora, wandb = printed.splitlines()
    assert page == f"page    {report}  (harness open {folder})" and report.stat().st_size > 10_000
    assert tables == f"tables  r = harness.results.load({str(folder)!r})"
    assert (lora, wandb) == (f"LoRA    harness export {folder} best", f"W&B     harness publish {folder}")
    assert harness(*run) == 0
    assert "Nothing to train, generate or score" in capsys.readouterr().out
    assert harness(*run, "--quiet") == 0
    quiet = capsys.readouterr()
    assert quiet.out.splitlines() == [line for line in printed.splitlines() if line in quiet.out][:1]
    assert quiet.err == ""
    assert harness(*run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["headline"] == quiet.out.strip() and found["failed"] == {}
    assert {c["control"] for c in found["contrasts"]} == {"baseline", "placebo", "sham"}
    assert [step["what"] for step in found["next"]] == ["page", "tables", "LoRA", "W&B"]
    assert harness(*run, "--set", "axes.training.steps=[2, 4, 5]") == 0
    extended = results.load(report.parent)
    assert list(extended.trials["training.steps"]) == [2, 4, 5]
    assert set(extended.trials["status"]) == {"completed"}


def test_one_trial(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("trial", sweep, 1, "--workspace", tmp_path / "w") == 0
    printed = capsys.readouterr()
    assert "placebo" in printed.out and "wrong_lora" in printed.out
    assert "110%" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check", "SWEEP", "--set", "adapter.rnak=4"), "did you mean adapter.rank?"),
        (("check", "SWEEP", "--set", "adapter.rank=0"), "adapter.rank"),
        (("trial", "SWEEP", 9), "allowed: 0 to 1"),
        (("check", "nowhere.yaml"), "nowhere.yaml"),
        (("run", "SWEEP", "--workspace", "SWEEP/below"), "cannot be written"),
        (("run", "SWEEP", "--executor", "slurm"), "slurm"),
        (("report", "nowhere"), "no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: tuple[object, ...], said: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness(*(str(word).replace("SWEEP", str(sweep)) for word in arguments)) == 2
    printed = capsys.readouterr()
    assert said in " ".join(printed.err.split())
    assert "Traceback" not in printed.err + printed.out


def test_a_failed_trial_is_told_and_the_exit_code_is_1(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverge = "axes={'training.learning_rate': [0.01, 1.0e30]}"
    code = harness("run", sweep, "-w", tmp_path / "w", "--executor", "local", "--set", diverge)
    assert code == 1
    assert "failed; run again to retry" in " ".join(capsys.readouterr().err.split())
    assert sorted(results.load(tmp_path / "w/sweeps/small").trials["status"]) == ["completed", "failed"]


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(sweep: Path, tmp_path: Path) -> None:
    settings = ["--set", "training.steps=60", "--set", "axes={}", "--set", "compute.checkpoint_every=20"]
    interrupted = [*_command(sweep, tmp_path / "interrupted"), *settings]
    process = subprocess.Popen(interrupted, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for_checkpoints(tmp_path / "interrupted", process)
    process.kill()
    process.wait(timeout=HANGS)
    assert not (tmp_path / "interrupted/sweeps/small/summary.parquet").exists()

    subprocess.run(interrupted, check=True, capture_output=True)
    undisturbed = [*_command(sweep, tmp_path / "undisturbed"), *settings]
    subprocess.run(undisturbed, check=True, capture_output=True)
    again, plain = (results.load(tmp_path / name / "sweeps/small") for name in ("interrupted", "undisturbed"))
    # A pack of the runs that were left rounds otherwise.
    pd.testing.assert_frame_equal(again.scores, plain.scores, rtol=0.1, atol=0.1)
    pd.testing.assert_series_equal(again.images["latent_hash"], plain.images["latent_hash"])
    first_steps = {
        json.loads((path / "manifest.json").read_text())["facts"]["from_step"]
        for path in (tmp_path / "interrupted/adapters").glob("*/steps-000060")
    }
    assert max(first_steps) > 0, "it trained again from the start, or was not interrupted in training"


def _command(sweep: Path, workspace: Path) -> list[str]:
    return [
        str(Path(sys.executable).parent / "harness"),
        "run",
        str(sweep),
        "-w",
        str(workspace),
        "--executor",
        "local",
    ]


def _wait_for_checkpoints(workspace: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + HANGS
    while len(list(workspace.glob("adapters/*/steps-*/manifest.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.005)


def test_an_address_is_of_a_cluster(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("run", sweep, "-w", tmp_path, "--executor", "local", "--address", "auto") == 2
    assert "--address is of a Ray cluster" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "localhost"])
def test_an_address_that_ray_cannot_use_is_told_in_one_line(
    address: str, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness("run", sweep, "-w", tmp_path, "--address", address) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: no Ray cluster at {address}") and "not the dashboard's" in said


def test_a_folder_too_long_for_rays_sockets_is_told_in_one_line(sweep: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "from harness.cli.main import main; main()", "run", sweep, "-w", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(long)},
    )
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said.startswith("error: Ray cannot start on this machine") and "TMPDIR=/tmp" in said


@pytest.mark.parametrize("given", ["option", "environment"])
def test_rays_client_is_refused_in_one_line_that_names_ray_job_submit(
    given: str,
    sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = "ray://127.0.0.1:1"
    monkeypatch.setenv("RAY_ADDRESS", address if given == "environment" else "")
    words = ("--address", address) if given == "option" else ()
    assert harness("run", sweep, "--workspace", tmp_path / "w", *words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert address in said and "ray job submit" in said and "Traceback" not in said
    assert not list((tmp_path / "w").glob("*/*"))
