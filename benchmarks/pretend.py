"""A sweep that is carried out in minutes, whatever its size: nothing is trained, images are flat colours.

Everything else is the harness's own: tasks, manifests, files, tables, scores of the real metrics. What is
measured of the engine on such a store, is measured on a store like any other, only with small files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from harness.config.plan.plan import Plan
from harness.config.schema.model import ModelConfig
from harness.diffusion.models.model import GeneratedImage, Row, SamplerSettings
from harness.diffusion.training.checkpoint import Checkpoint
from harness.engine.executors.local import LocalExecutor
from harness.engine.pipeline import SweepRun, run_sweep
from harness.engine.stages.context import Context, Segment
from harness.errors import HarnessError, TrainingError
from harness.store.workspace import Workspace

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model

SIDE = 16  # px


@dataclass(frozen=True, kw_only=True)
class PretendedContext(Context):
    """A context whose model generates flat colours."""

    def model(self, config: ModelConfig) -> "Model":
        """Has no more than generating images and making datasets ask for."""
        # No text need be encoded.
        known = SimpleNamespace(unknown=lambda texts: set(), write=lambda texts, file: file.write_bytes(b""))
        flat = SimpleNamespace(
            config=config,
            resolution=SIDE,
            scheduler="EulerDiscreteScheduler",
            generate=_generate,
            encode_images=_encode,
            texts=known,
        )
        return cast("Model", flat)


def carry_out(plan: Plan, workspace: Workspace, *, shown: bool = True) -> SweepRun:
    """Make everything that the sweep asks for and the store lacks. `shown`: what publishing it says."""
    ctx = PretendedContext.of(plan, workspace.address, lambda kind, count: None, trainer=_train)
    return run_sweep(plan, ctx, LocalExecutor(), announce=lambda *_: None, publish=lambda results: shown)


def _encode(images: Sequence[Image.Image]) -> Any:
    """No latents: what cannot be encoded is left to training, which is not done either."""
    raise TrainingError("a model of flat colours has no VAE")


def _generate(rows: Sequence[Row], settings: SamplerSettings) -> list[GeneratedImage]:
    return [GeneratedImage(image=_flat(row), latent_hash=f"{row.seed}") for row in rows]


def _flat(row: Row) -> Image.Image:
    """Two colours that depend on the row, so that no two images have the same scores."""
    digest = hashlib.sha256(repr(row).encode()).digest()
    pixels_223 = np.frombuffer(digest[:12], dtype=np.uint8).reshape(2, 2, 3)
    return Image.fromarray(pixels_223).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _train(ctx: Context, segments: Sequence[Segment]) -> dict[str, HarnessError]:
    """Checkpoints of an adapter with one number, and the records of a training."""
    for segment in segments:
        _write_checkpoints(ctx, segment)
    return {}


def _write_checkpoints(ctx: Context, segment: Segment) -> None:
    run = segment.run
    for step in segment.checkpoints:
        about: dict[str, Any] = {"run": {"run_id": run.run_id}, "step": step, "from_step": segment.start}
        with ctx.workspace.checkpoint(run.run_id, step).build(**about, train_seconds=0.01 * step) as folder:
            adapter = {"unet.lora_A.weight": torch.full((1,), float(step))}
            losses = [1 / (1 + done) for done in range(step)]
            Checkpoint(
                run_id=run.run_id,
                step=step,
                adapter=adapter,
                optimizer={},
                losses=losses,
                ema={},
                validation=None,
            ).write(folder)
            save_file(adapter, folder / "pytorch_lora_weights.safetensors")
