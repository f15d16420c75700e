"""A sweep that only evaluates: trials are files; nothing is trained, and all the evidence is there."""

import json
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
from harness.reporting.report.sheet import Sheet, View
from harness.reporting.wandb_runs import all_runs
from harness.results.study import Study
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


def rows_of_the_grid(study: Study, page: str) -> None:
    """Each file is a row, as a trial or as an arm, with its image, score and difference."""
    for y, names in (
        ("adapter", ["wrong-000010", "wrong-000020", "wrong"]),
        ("arm", ["wrong_lora", "theirs"]),
    ):
        sheet = Sheet(study, View(x="prompt", y=y, at={"arm": "wrong_lora"} if y == "adapter" else {}))
        rows = [(label, row) for label, row in sheet.coordinates(y) if label in names]
        assert [label for label, _ in rows] == names
        for _, column in sheet.coordinates("prompt"):
            cells = [sheet.cell({**sheet.home, **row, **column}) for _, row in rows]
            assert len({cell.path for cell in cells}) == len(names)
            assert all(cell.value is not None and cell.difference is not None for cell in cells)
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [axis["values"] for axis in data["axes"]] == [["wrong-000010", "wrong-000020", "wrong"]]
    (theirs,) = [place for place, arm in enumerate(data["arms"]) if arm["name"] == "theirs"]
    drawn = {trial["draws"][theirs] for trial in data["trials"]}
    shown = [row for row, draw in enumerate(data["images"]["draw"]) if draw in drawn]
    assert shown and all(data["thumbnails"][row] is not None for row in shown)


def test_checkpoints_of_one_folder_are_compared(
    tmp_path: Path, tiny_config: SdxlModel, tiny_clip: str
) -> None:
    (tmp_path / "out").mkdir()
    for number, name in enumerate(("wrong-000010", "wrong-000020", "wrong"), 1):
        lora(tmp_path / "out" / f"{name}.safetensors", tiny_config, 0.1 * number)
    lora(tmp_path / "theirs.safetensors", tiny_config, 0.5)
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
            {
                "name": "theirs",
                "negative": "wrong",
                "adapters": [{"file": str(tmp_path / "theirs.safetensors")}],
            },
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
    assert pixels.nunique() == len(pixels) == 5
    write_report(results, workspace, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "wrong-000020" in page
    rows_of_the_grid(Study(results), page)
    runs = [run for run in all_runs(results, workspace, images_per_arm=0) if run.job_type == "trial"]
    assert [run.history for run in runs] == [()] * 3, "no losses, but runs"
    again = run_sweep(plan, ctx, LocalExecutor(), announce=lambda *_: None, publish=lambda _: True)
    assert not again.outcomes
    pd.testing.assert_frame_equal(again.results.summary, results.summary)
