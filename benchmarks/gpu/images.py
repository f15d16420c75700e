"""Part 3: images of `Model.generate` with a LoRA on one branch, against the stock pipeline one at a time."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.parts import Measurement, Part, Row, Values
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.training import gib, numbers
from benchmarks.image import rows, write_adapter
from benchmarks.plain import plain_image, plain_lora
from benchmarks.timing import now
from harness.config.schema.evaluation import Branch
from harness.diffusion.models.model import SamplerSettings

STEPS = 30
PLAIN = 2  # images of the stock pipeline
BATCHES = (1, 4, 8, 16, 32)


def part(setting: Setting, *, limit: float) -> Part:
    """30 steps of the base, without refiner. The stock pipeline has its LoRA on both branches."""
    return Part(
        name="images",
        title="Images",
        limit=limit,
        measurements=lambda: _measurements(setting),
        columns=_columns,
    )


def _measurements(setting: Setting) -> list[Measurement]:
    model = setting.at(setting.resolutions[0])
    adapter = write_adapter(model, setting.folder / "adapter")
    settings = SamplerSettings(steps=3 if setting.small else STEPS, refiner_start=None)
    batches = BATCHES[:2] if setting.small else BATCHES
    branch: Branch
    found = [
        Measurement(
            what={"way": "stock pipeline, LoRA on both branches, one at a time"},
            measure=partial(_plain, setting, adapter, settings),
        )
    ]
    for branch, sizes in (("negative", batches), ("both", batches[-1:])):
        for size in sizes:
            where = "both branches" if branch == "both" else f"the {branch} branch"
            found.append(
                Measurement(
                    what={"way": f"harness, LoRA on {where}, {size} at once"},
                    measure=partial(_ours, setting, adapter, settings, size, branch=branch),
                )
            )
    return found


def _plain(setting: Setting, adapter: Path, settings: SamplerSettings) -> Values:
    device = _reset(setting)
    drawn = rows(adapter, PLAIN)
    with plain_lora(setting.pipelines, adapter):
        plain_image(setting.pipelines, drawn[0], SamplerSettings(steps=2, refiner_start=None))
        start = now(device)
        for row in drawn:
            plain_image(setting.pipelines, row, settings)
        return _values(now(device).since(start, items=PLAIN).wall, device)


def _ours(setting: Setting, adapter: Path, settings: SamplerSettings, size: int, *, branch: Branch) -> Values:
    device = _reset(setting)
    drawn = rows(adapter, size, branch=branch)
    setting.model.generate(drawn, SamplerSettings(steps=2, refiner_start=None))
    start = now(device)
    setting.model.generate(drawn, settings)
    return _values(now(device).since(start, items=size).wall, device)


def _reset(setting: Setting) -> torch.device:
    device = setting.model.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return device


def _values(seconds: float, device: torch.device) -> Values:
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"s per image": seconds, "peak bytes": peak}


def _columns(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    seconds, stock = numbers(row)["s per image"], rows[0]
    times = "–" if stock.values is None else f"{numbers(stock)['s per image'] / seconds:.2f}"
    return {"s per image": f"{seconds:.4g}", "times the stock pipeline": times, "GiB at most": gib(row)}
