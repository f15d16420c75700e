"""The memory of one training step of full-size SDXL, setting by setting: `python -m benchmarks.memory`.

Counted on the meta device, so it needs no GPU and no weights (see `ledger.py`). The step is the harness's own
UNet with its adapter attached, in the base's precision, forward and backward.
"""

from dataclasses import dataclass, field, replace

import torch

from benchmarks.ledger import GIB, Ledger, fused_attention
from benchmarks.machine import print_table
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.model import Precision, SdxlModel
from harness.diffusion.models.attach import attach
from harness.diffusion.models.model import Fresh
from harness.diffusion.models.random_weights import hollow_pipelines

MOMENTS = 2  # AdamW's, fp32


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step's settings, by the names that a sweep gives them."""

    precision: Precision = "bf16"
    resolution: int = 1024
    batch_size: int = 1
    checkpointing: bool = False
    adapter: LowRankAdapter = field(default_factory=LowRankAdapter)

    @property
    def label(self) -> str:
        """What differs from the default step."""
        usual = Step()
        parts = [f"{self.resolution} px"] * (self.resolution != usual.resolution)
        parts += [f"batch {self.batch_size}"] * (self.batch_size != usual.batch_size)
        parts += [self.precision] * (self.precision != usual.precision)
        own, default = self.adapter.model_dump(), usual.adapter.model_dump()
        for name, value in own.items():
            if value != default[name]:
                text = " + ".join(value) if isinstance(value, tuple) else str(value)
                parts.append(text if name in ("kind", "targets") else f"{name} {text}")
        parts += ["checkpointing"] * self.checkpointing
        return ", ".join(parts) or "1024 px, batch 1, bf16, lora of rank 8 on attention"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes. `activations` is the highest sum of what the step makes, gradients among it."""

    base: int
    adapter: int
    activations: int

    @property
    def total(self) -> int:
        """With both of AdamW's moments."""
        return self.base + (1 + MOMENTS) * self.adapter + self.activations


USUAL = Step()
STEPS = (
    USUAL,
    replace(USUAL, checkpointing=True),
    replace(USUAL, batch_size=2),
    replace(USUAL, batch_size=4),
    replace(USUAL, batch_size=4, checkpointing=True),
    replace(USUAL, resolution=512),
    replace(USUAL, precision="fp32"),
    replace(USUAL, adapter=LowRankAdapter(rank=4)),
    replace(USUAL, adapter=LowRankAdapter(rank=64)),
    replace(USUAL, adapter=LowRankAdapter(kind="dora")),
    replace(USUAL, adapter=LowRankAdapter(targets=("attention", "feed_forward"))),
    replace(USUAL, adapter=LowRankAdapter(targets=("attention", "convolutions", "feed_forward"))),
)


def measure(step: Step) -> Memory:
    """Count one step."""
    pipeline = hollow_pipelines(
        SdxlModel(source="random", refiner=None, vae=None, precision=step.precision)
    ).base
    parts = (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae)
    base = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    fresh = Fresh(adapter=step.adapter, seed=0)
    with attach(pipeline, [fresh], checkpointing=step.checkpointing) as trainable:
        parameters = [p for group in trainable.members[0].groups() for p in group.parameters]
        adapter = sum(p.numel() * p.element_size() for p in parameters)
        inputs = _inputs(step, pipeline.unet.dtype)
        with fused_attention(), Ledger(known=[*pipeline.unet.parameters(), *inputs]) as ledger:
            noisy_BChw, timesteps_B, embeds_BTD, pooled_BP, time_ids_B6 = inputs
            predicted_BChw = pipeline.unet(
                noisy_BChw,
                timesteps_B,
                encoder_hidden_states=embeds_BTD,
                added_cond_kwargs={"text_embeds": pooled_BP, "time_ids": time_ids_B6},
                return_dict=False,
            )[0]
            predicted_BChw.float().square().mean().backward()
    return Memory(base=base, adapter=adapter, activations=ledger.peak)


def _inputs(step: Step, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    rows, side = step.batch_size, step.resolution // 8
    shapes = ((rows, 4, side, side), (rows,), (rows, 77, 2048), (rows, 1280), (rows, 6))
    return tuple(torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)


def main() -> None:
    """Print the table."""
    rows = []
    for step in STEPS:
        memory = measure(step)
        columns = {
            "model": memory.base,
            "adapter and its moments": (1 + MOMENTS) * memory.adapter,
            "the step": memory.activations,
            "total": memory.total,
        }
        rows.append(
            {"settings": step.label} | {name: f"{size / GIB:.2f} GiB" for name, size in columns.items()}
        )
    print_table(rows, device=None)


if __name__ == "__main__":
    main()
