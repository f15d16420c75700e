"""How many runs are trained together: from two short probes, what is faster and what fits in memory.

A pass of K runs takes about a + c K seconds and b + d K bytes; probes of one run and of two give the four
numbers. Errors of full memory say what to change; their figures are of full-size SDXL at 1024 px in bf16, by
`python -m benchmarks.memory`: 6.5 GiB of base, and per image 5.3 GiB of activations, 0.5 with checkpointing.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from harness.config.plan.plan import TrainingRun
from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.model import ModelConfig
from harness.diffusion.models.model import Fresh

if TYPE_CHECKING:
    from harness.diffusion.models.model import Model


def out_of_memory(run: TrainingRun, *, checkpointing: bool) -> str:
    """The message: only what this run does not do yet."""
    training, ways = run.training, []
    if not checkpointing:
        ways.append(
            "compute.gradient_checkpointing: true (SDXL at 1024 px: 0.5 GiB instead of 5.3 for each image "
            "of a batch)"
        )
    if training.batch_size > 1:
        passes = training.batch_size * training.gradient_accumulation
        ways.append(
            f"training.batch_size: 1 with training.gradient_accumulation: {passes} instead of "
            f"{training.batch_size} with {training.gradient_accumulation} (the same step)"
        )
    if _is_fp32(run.dataset.model):
        ways.append("model.precision: bf16 (half of the base's 12.9 GiB)")
    if isinstance(run.adapter, LowRankAdapter):
        ways += _smaller_adapters(run.adapter)
    if training.optimizer.kind != "adamw_8bit":
        ways.append("training.optimizer.kind: adamw_8bit")
    return f"run {run.run_id}: the accelerator is out of memory; what saves most first: {'; '.join(ways)}"


def _smaller_adapters(adapter: LowRankAdapter) -> list[str]:
    ways = []
    if adapter.kind == "dora":
        ways.append("adapter.kind: lora (1.2 GiB less)")
    if adapter.targets != ("attention",):
        ways.append("adapter.targets: [attention] (up to 1.4 GiB less)")
    if adapter.rank > 1:
        ways.append(f"a lower adapter.rank than {adapter.rank} (1.1 GiB from 64 to 8)")
    return ways


def _is_fp32(model: ModelConfig) -> bool:
    return model.precision == "fp32"


WORTH = 0.1  # more runs, until what they still share costs each less than this part of its own work
LEAST_GAIN = 0.1  # no pack at all where it would be faster by less
PASSES = 3  # after a first one; the fastest counts, for whatever else the machine does makes it slower
FREE_SHARE = 0.9  # of the free memory, for what the allocator loses between blocks


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A forward and a backward pass. `peak`: bytes at most, None if the device does not count."""

    seconds: float
    peak: int | None


def runs_at_once(runs: Sequence[TrainingRun], model: "Model", *, checkpointing: bool) -> int:
    """How many of these runs, the widest first, `train` should be given together."""
    if len(runs) == 1:
        return 1
    one, two = (_probe(runs[:count], model, checkpointing=checkpointing) for count in (1, 2))
    free = None
    if model.device.type == "cuda":
        free = int(FREE_SHARE * torch.cuda.mem_get_info(model.device)[0])
        free += torch.cuda.memory_reserved(model.device)
    return fitted(one, two, free=free, most=len(runs))


def fitted(one: Probe, two: Probe, *, free: int | None, most: int) -> int:
    """The number of runs that the probes of one and of two speak for, at most `most`.

    `free` is what the device has for this process, in bytes.
    """
    each = max(two.seconds - one.seconds, 1e-9)
    shared = max(one.seconds - each, 0.0)
    together = min(most, max(1, math.ceil(shared / (WORTH * each))))
    if free is not None and one.peak is not None and two.peak is not None and two.peak > one.peak:
        holds = 1 + int((free - one.peak) // (two.peak - one.peak))
        together = max(1, min(together, holds))
    pays = one.seconds >= (1 + LEAST_GAIN) * (shared / together + each)
    return together if pays else 1


def _probe(runs: Sequence[TrainingRun], model: "Model", *, checkpointing: bool) -> Probe:
    """The fastest of some passes, as wide as the runs' own. The model is left as it was."""
    counts = [_rows_per_pass(run) for run in runs]
    side = model.resolution
    blank = model.encode_images([Image.new("RGB", (side, side))]).mean_NChw.float()
    noisy_BChw = blank.expand(sum(counts), -1, -1, -1)
    timesteps_B = torch.full((len(noisy_BChw),), 500, device=model.device)
    time_ids_B6 = torch.tensor([[side, side, 0, 0, side, side]] * len(noisy_BChw))
    captions = [run.training.prompt for run, count in zip(runs, counts, strict=True) for _ in range(count)]
    fresh = [Fresh(adapter=run.adapter, seed=0) for run in runs]
    cuda = model.device.type == "cuda"
    with model.attach(fresh, checkpointing=checkpointing) as trainable:
        passes = []
        for _ in range(1 + PASSES):
            if cuda:
                torch.cuda.synchronize(model.device)
                torch.cuda.reset_peak_memory_stats(model.device)
            started = time.perf_counter()
            predicted_BChw = trainable.predict(noisy_BChw, timesteps_B, captions, time_ids_B6, counts=counts)
            predicted_BChw.square().mean().backward()
            if cuda:
                torch.cuda.synchronize(model.device)
            passes.append(time.perf_counter() - started)
    return Probe(
        seconds=min(passes[1:]), peak=torch.cuda.max_memory_allocated(model.device) if cuda else None
    )


def _rows_per_pass(run: TrainingRun) -> int:
    return run.training.batch_size * (1 if run.training.prior is None else 2)
