"""A sweep that only evaluates: trials are files; nothing is trained, and all the evidence is there."""

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from harness.config.loading.check_named_files import module_shapes
from harness.config.loading.load import load_plan
from harness.config.schema.model import SdxlModel
from harness.engine.accounting.inventory import inventory
from harness.engine.executors.local import LocalExecutor
from harness.engine.pipeline import run_sweep
from harness.engine.stages.context import Context
from harness.reporting.report import write_report
from harness.reporting.wandb_runs import all_runs
from harness.store.workspace import Workspace
from tests.sweeps.small import write_sweep


def lora(file: Path, model: SdxlModel, strength: float) -> None:
    """kohya's layout, on the UNet's attention."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for module, shape in module_shapes(model)["unet"].items():
        if module.endswith(("to_q", "to_v")):
            name = f"lora_unet_{module.replace('.', '_')}"
            state[f"{name}.lora_down.weight"] = torch.randn(2, shape[1], generator=generator) * strength
            state[f"{name}.lora_up.weight"] = torch.randn(shape[0], 2, generator=generator)
            state[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(state, file)


def test_checkpoints_of_one_folder_are_compared(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    (tmp_path / "out").mkdir()
    for number, name in enumerate(("wrong-000010", "wrong-000020", "wrong"), 1):
        lora(tmp_path / "out" / f"{name}.safetensors", tiny_config, 0.1 * number)
    file = write_sweep(
        tmp_path / "small.yaml",
        tiny_config,
        tiny_clip,
        recipe=None,
        adapter={"kind": "file"},
        training=None,
        axes={"adapter.file": "out"},
        arms=[
            {"name": "placebo", "negative": "wrong"},
            {"name": "wrong_lora", "negative": "wrong", "adapters": [{"scale": 1.0}]},
        ],
    )
    plan, workspace = load_plan(file), Workspace(tmp_path / "runs")
    ctx = Context.of(plan, workspace.address, lambda *_: None)
    counts = inventory(plan, ctx.workspace)
    assert counts["training steps"].asked == counts["training images"].asked == 0
    assert counts["adapter images"].missing == 3 * 2 * 2
    finished = run_sweep(plan, ctx, LocalExecutor(), announce=lambda *_: None, publish=lambda _: True)
    results = finished.results
    trials = results.trials
    assert list(trials["adapter"]) == ["wrong-000010", "wrong-000020", "wrong"]
    assert set(trials["status"]) == {"completed"} and trials["selected"].sum() == 1
    assert trials[["run_id", "dataset_id", "adapter_path", "final_loss"]].isna().all(axis=None)
    dev = results.summary[results.summary["split"] == "dev"]
    assert set(dev["trial_id"]) == set(trials["trial_id"])
    test = results.images[results.images["split"] == "test"]
    own = test[test["arm"] == "wrong_lora"]
    assert set(own["trial_id"]) == set(trials[trials["selected"]]["trial_id"]), (
        "only the selected is confirmed"
    )
    pixels = results.images[results.images["split"] == "dev"].groupby("arm_id")["sha256"].apply(tuple)
    assert pixels.nunique() == len(pixels) == 4
    write_report(results, workspace, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "wrong-000020" in page
    runs = [run for run in all_runs(results, workspace, images_per_arm=0) if run.job_type == "trial"]
    assert [run.history for run in runs] == [()] * 3, "no losses, but runs"
    again = run_sweep(plan, ctx, LocalExecutor(), announce=lambda *_: None, publish=lambda _: True)
    assert not again.outcomes
    pd.testing.assert_frame_equal(again.results.summary, results.summary)
