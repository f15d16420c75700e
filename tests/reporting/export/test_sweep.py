"""Export of a sweep that was really run: what training wrote is what other tools read."""

from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

from harness.config.schema.model import SdxlModel
from harness.engine.executors.local import LocalExecutor
from harness.engine.pipeline import run_sweep
from harness.engine.stages.context import Context
from harness.reporting.export import export_trial
from harness.store.workspace import Workspace
from tests.sweeps.small import small_plan

ADAPTER = {
    "kind": "rslora",
    "rank": 4,
    "alpha": 2,
    "targets": ["attention", "feed_forward", "convolutions"],
    "text_encoders": True,
}


def test_stock_diffusers_draws_the_same_from_both_files(
    tiny_folder: Path, tiny_config: SdxlModel, tiny_clip: str, tmp_path: Path
) -> None:
    """rsLoRA's scale is alpha / √rank = 1 here, which kohya's file must say as an alpha of 4."""
    plan = small_plan(tmp_path, tiny_config, tiny_clip, adapter=ADAPTER, seeds=[0])
    ctx = Context.of(plan, tmp_path / "w", lambda *_: None)
    run = run_sweep(plan, ctx, LocalExecutor(), announce=lambda *_: None, publish=lambda _: True)
    out = export_trial(run.results, Workspace(tmp_path / "w"), "best", folder=tmp_path / "out", layout="both")
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def drawn(file: Path | None) -> torch.Tensor:
        pipeline.unload_lora_weights()
        if file is not None:
            pipeline.load_lora_weights(out, weight_name=file.name)
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(0)
            return pipeline("a red fox", num_inference_steps=2, generator=generator, output_type="pt").images

    ours, theirs = sorted(out.glob("*.safetensors"))
    assert (drawn(ours) - drawn(None)).abs().max() > 1e-3
    assert torch.equal(drawn(ours), drawn(theirs))
    assert str(tmp_path) not in (out / "README.md").read_text()
