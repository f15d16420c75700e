"""Trials that raise, hang, die, lack memory or learn nothing: rows with a reason, and the others go on."""

import inspect
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.plan.plan import Plan
from harness.config.schema.model import ModelConfig, SdxlModel
from harness.diffusion.models.model import Model
from harness.engine.executors import ExecutorName, make_executor
from harness.engine.executors.timeout import Raising
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.stages.context import Context
from harness.errors import HarnessError
from tests.diffusion.tiny import tiny_config as spec_of
from tests.engine.executors.carrying import Display
from tests.sweeps.small import small_plan

ARMS = [{"name": "placebo", "negative": "wrong"}, {"name": "lora", "negative": "wrong", "adapters": [{}]}]
GOOD, NAN = 0.01, 1e30
FAULTS = {0.02: "die", 0.03: "raise", 0.04: "memory"}
HANG = {0.05: "hang"}


@dataclass(frozen=True, kw_only=True)
class Faulty(Context):
    """A worker's context that has a fault when some runs are trained; each try leaves a file in `tries`."""

    faults: dict[str, str] = field(default_factory=dict)  # by run
    tries: Path

    def model(self, config: ModelConfig) -> Model:
        """The model, unless one of the runs with a fault is being trained."""
        callers = [frame.frame for frame in inspect.stack() if frame.function == "train_segments"]
        for run_id in [segment.run.run_id for caller in callers for segment in caller.f_locals["segments"]]:
            if fault := self.faults.get(run_id):
                self.tries.mkdir(exist_ok=True)
                (self.tries / f"{fault}-{os.getpid()}-{time.monotonic_ns()}").touch()
                have(fault)
        return super().model(config)


def have(fault: str) -> None:
    match fault:
        case "raise":
            raise RuntimeError("something\nunforeseen")
        case "die":  # as the system does to what takes too much memory
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory":
            torch.empty(10**15)
        case "hang":
            time.sleep(3600)


def carry_out(plan: Plan, root: Path, name: ExecutorName, faults: dict[float, str]) -> SweepRun:
    runs = {run.training.learning_rate: run_id for run_id, run in plan.runs.items()}
    ctx = Faulty.of(
        plan,
        root,
        Display().report,
        faults={runs[rate]: fault for rate, fault in faults.items()},
        tries=root / "tries",
    )
    with make_executor(name) as executor:
        return run_sweep(plan, ctx, executor, announce=lambda *_: None, publish=lambda _: True)


def rows(run: SweepRun) -> dict[float, dict[Hashable, Any]]:
    """The trials by their learning rate. What failed has no score and no image of its own."""
    trials = {row["training.learning_rate"]: row for row in run.results.trials.to_dict("records")}
    for row in trials.values():
        differences = run.results.summary.query(f"trial_id == '{row['trial_id']}'")["mean_difference"]
        assert differences.notna().all() if row["status"] == "completed" else differences.isna().all()
    return trials


@pytest.mark.slow
def test_a_fault_is_tried_again_then_a_row_with_the_reason(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    """In two packs, that of the good run with the one that takes its worker with it: then each is alone."""
    compute = {"max_failures": 1, "max_concurrent": 2, "batch_size": 4}
    axes = {"training.learning_rate": [GOOD, *FAULTS, NAN]}
    plan = small_plan(tmp_path, tiny_config, tiny_clip, axes=axes, arms=ARMS, compute=compute)
    run = carry_out(plan, tmp_path / "w", "ray", FAULTS)
    trials = rows(run)
    assert trials[GOOD]["status"] == "completed" and pd.isna(trials[GOOD]["reason"])
    for rate, said in {
        0.02: "worker died or was killed",
        0.03: "RuntimeError",
        0.04: "memory",
        NAN: "learning rate",
    }.items():
        assert trials[rate]["status"] == "failed"
        assert said in trials[rate]["reason"] and "\n" not in trials[rate]["reason"]
    tries = Counter(file.name.partition("-")[0] for file in (tmp_path / "w" / "tries").iterdir())
    assert tries == {"die": 2 + 2, "raise": 2 + 2, "memory": 2}  # two of each pack, and two of each run alone


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray", "local"])
def test_a_task_that_hangs_is_ended_and_its_worker_is_free(
    name: ExecutorName, tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    # The one worker that there is hangs first; all the rest must come after it.
    compute = {"max_failures": 0, "max_concurrent": 1, "batch_size": 4, "timeout_minutes": 0.3, "pack": "off"}
    axes = {"training.learning_rate": [*HANG, GOOD]}
    plan = small_plan(tmp_path, tiny_config, tiny_clip, axes=axes, arms=ARMS, compute=compute)
    run = carry_out(plan, tmp_path / "w", name, HANG)
    trials = rows(run)
    assert trials[GOOD]["status"] == "completed"
    assert trials[0.05]["status"] == "failed"
    reason = trials[0.05]["reason"]
    assert "took longer than 0.3 min (compute.timeout_minutes), at 'training " in reason
    assert trials[0.05]["run_id"] in reason and "\n" not in reason
    (note,) = (tmp_path / "w/sweeps/small/timeouts").iterdir()
    assert str(note) in reason and "in train_segments" in note.read_text()
    assert len(list((tmp_path / "w" / "tries").iterdir())) == 1


def test_a_task_within_its_time_leaves_no_note(tmp_path: Path) -> None:
    watchdog = Raising(0.5 / 60, tmp_path / "note.txt")
    with watchdog.running():
        watchdog.step("quick")
    assert not (tmp_path / "note.txt").exists()
    with pytest.raises(HarnessError, match=r"took longer .* at 'sleeping'"), watchdog.running():
        watchdog.step("sleeping")
        time.sleep(60)


@pytest.mark.slow
def test_images_of_one_colour_fail_their_trial_and_have_no_score(
    tmp_path: Path, tiny_folder: Path, tiny_clip: str
) -> None:
    base = tmp_path / "sdxl"
    shutil.copytree(tiny_folder, base)
    (file,) = base.glob("vae/*.safetensors")
    weights = load_file(file)
    weights["decoder.conv_out.weight"].zero_()  # whatever is drawn, the decoder makes it black
    weights["decoder.conv_out.bias"].fill_(-1.0)
    save_file(weights, file, metadata={"format": "pt"})
    changes = {"axes": {}, "arms": ARMS, "sampler": {"steps": 2, "guidance": 4.0, "refiner_start": None}}
    plan = small_plan(tmp_path, spec_of(base, refiner=False), tiny_clip, **changes)
    run = carry_out(plan, tmp_path / "w", "local", {})
    (trial,) = run.results.trials.to_dict("records")
    assert (trial["status"], trial["reason"]) == ("failed", "4 of 4 dev images are of one colour")
    scores = run.results.scores
    assert len(scores) and scores["value"].isna().all()
    assert set(scores["reason"]) == {"the image is of one colour"}
    own = run.results.arms[~run.results.arms["is_control"]]
    assert set(own["reason"]) == {"4 of 4 dev images are of one colour"}
    summary = run.results.summary
    assert len(summary) and summary["mean_difference"].isna().all() and summary["reason"].notna().all()
    assert not trial["selected"]
