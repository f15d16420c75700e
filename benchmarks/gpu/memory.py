"""Part 5: the memory of a training step as `benchmarks.memory` counts it, against the device's own count."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.gpu.parts import Measurement, Part, Row, Values
from benchmarks.gpu.setting import Setting, packed_steps
from benchmarks.gpu.training import gib, numbers
from benchmarks.memory import USUAL, Step, measure
from harness.config.schema.adapter import LowRankAdapter

STEPS = (
    USUAL,
    replace(USUAL, checkpointing=True),
    replace(USUAL, batch_size=4),
    replace(USUAL, resolution=512),
    replace(USUAL, adapter=LowRankAdapter(kind="dora")),
)


def part(setting: Setting, *, limit: float) -> Part:
    """Predictions are of full-size SDXL on any device; `--small` makes one, of small images."""
    steps = (replace(USUAL, resolution=64),) if setting.small else STEPS
    return Part(
        name="memory",
        title="Memory",
        limit=limit,
        measurements=lambda: [
            Measurement(what={"settings": step.label}, measure=partial(_measured, setting, step))
            for step in steps
        ],
        columns=_columns,
    )


def _measured(setting: Setting, step: Step) -> Values:
    values: Values = {"predicted bytes": measure(step).total}
    if setting.model.device.type == "cuda":
        found = packed_steps(
            setting,
            step.resolution,
            adapter=step.adapter,
            batch_size=step.batch_size,
            checkpointing=step.checkpointing,
        )
        values |= {"peak bytes": found.peak, "reserved bytes": torch.cuda.max_memory_reserved()}
    return values


def _columns(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    values = numbers(row)
    error = "–"
    if "peak bytes" in values:
        error = f"{100 * (values['peak bytes'] / values['predicted bytes'] - 1):+.1f} %"
    return {
        "predicted GiB": gib(row, "predicted bytes"),
        "measured GiB": gib(row),
        "apart": error,
        "GiB with the allocator's own": gib(row, "reserved bytes"),
    }
