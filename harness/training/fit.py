"""How many runs are trained together: from two short probes, what pays and what the memory holds.

A pass of K runs takes about a + c K seconds and b + d K bytes. Two probes, of one run and of two, give the
four numbers. Where c K is nearly all of the time, the device is full, and more runs gain nothing.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from harness.models.model import Fresh
from harness.spec.expand import TrainingRun

if TYPE_CHECKING:
    from harness.models.model import Model

WORTH = 0.1  # more runs, until what they still share costs each less than this part of its own work
LEAST_GAIN = 0.1  # no pack at all where it would be faster by less
PASSES = 3  # after a first one; the fastest counts, for whatever else the machine does makes it slower
FREE_SHARE = 0.9  # of the free memory, for what the allocator loses between blocks


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A forward and a backward pass. `peak`: bytes at most, null where the device does not count."""

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
