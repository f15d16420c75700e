"""One training run in two processes is the run of one process."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.config.plan.plan import Plan
from harness.config.schema.model import SdxlModel
from harness.errors import ConfigError, HarnessError
from harness.store.workspace import Workspace
from tests.engine.executors.carrying import carry_out
from tests.sweeps.small import small_plan

LORA = "pytorch_lora_weights.safetensors"
ARMS = [{"name": "placebo", "negative": "wrong"}, {"name": "lora", "negative": "wrong", "adapters": [{}]}]


def plan_of(folder: Path, model: SdxlModel, clip: str, workers: int, **compute: float) -> Plan:
    settings = {"batch_size": 4, "checkpoint_every": 100, "workers_per_trial": workers, **compute}
    # Two rows in each step, one in each pass: the same products in one process and in two.
    training = {"learning_rate": 0.01, "batch_size": 1, "gradient_accumulation": 2, "steps": 4}
    return small_plan(folder, model, clip, compute=settings, training=training, arms=ARMS)


@pytest.mark.slow
def test_two_processes_equal_one(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str, one_thread: None
) -> None:
    one = plan_of(tmp_path, tiny_config, tiny_clip, 1)
    two = plan_of(tmp_path, tiny_config, tiny_clip, 2)
    assert one.runs.keys() == two.runs.keys(), "how a run is trained is not what it is"
    alone = carry_out(one, tmp_path / "one", "local")
    shared = carry_out(two, tmp_path / "two", "ray")
    assert not [outcome for outcome in shared.outcomes if outcome.failed]
    for run_id, run in one.runs.items():
        for steps in run.checkpoints:
            here, there = (
                load_file(Workspace(tmp_path / name).checkpoint(run_id, steps).path / LORA)
                for name in ("one", "two")
            )
            assert here.keys() == there.keys()
            for key, weight in here.items():
                torch.testing.assert_close(there[key], weight, rtol=0, atol=1e-7)
    assert (shared.results.trials["status"] == "completed").all()
    assert len(shared.results.images) == len(alone.results.images)


def test_a_loop_has_one_process(tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str) -> None:
    plan = plan_of(tmp_path, tiny_config, tiny_clip, 2)
    with pytest.raises(ConfigError, match="need --executor ray"):
        carry_out(plan, tmp_path / "w", "local")


@pytest.mark.slow
def test_more_than_the_machine_has_is_an_error(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    plan = plan_of(tmp_path, tiny_config, tiny_clip, 2, cpus_per_trial=1000)
    with pytest.raises(HarnessError, match="2 processes of 1000 CPU and 0 GPU do not fit"):
        carry_out(plan, tmp_path / "w", "ray")
