"""What all parts measure: one model with random weights, its images, its peak, and steps of its training."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import subject
from benchmarks.gpu.parts import DoesNotFit
from benchmarks.packing import peak_flops
from benchmarks.plain import plain_training
from benchmarks.timing import Spent, now
from harness.config.schema.adapter import LowRankAdapter
from harness.diffusion.models.model import Fresh
from harness.diffusion.models.pipelines import Pipelines
from harness.diffusion.models.sdxl import Sdxl
from harness.diffusion.training import train

RANK = 8
WARM_UP = 3  # steps before the clock starts: each of the images has been seen
IMAGES = 2
MOST_STEPS = 1000


class _Enough(Exception):
    """The steps that are measured have been made."""


@dataclass(kw_only=True)
class Setting:
    """A model that is loaded once. `small`: the embedded one, on whatever device, and few measurements."""

    small: bool
    pipelines: Pipelines
    model: Sdxl
    folder: Path
    peak: float  # operations per second of a large matrix product, measured
    _operations: dict[int, float] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, *, small: bool) -> "Setting":
        """The embedded model, or full-size SDXL without its refiner."""
        name = "emoji" if small else "sdxl-random"
        pipelines, model = subject.load(name, resolution=None, refiner=False)
        peak = peak_flops(model, side=1024 if small else 8192)
        return cls(small=small, pipelines=pipelines, model=model, folder=folder, peak=peak)

    @property
    def seconds(self) -> float:
        """That a measurement aims at, its set-up aside."""
        return 0.3 if self.small else 2.0

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The sides of the images, in pixels, the usual one first."""
        return (self.model.resolution,) if self.small else (1024, 512)

    def at(self, resolution: int) -> Sdxl:
        """The same weights for images of this size."""
        if resolution != self.model.resolution:
            unet = self.pipelines.base.unet
            unet.register_to_config(sample_size=resolution // self.pipelines.base.vae_scale_factor)
            self.model = Sdxl(self.model.config, self.pipelines, device=str(self.model.device))
        return self.model

    def dataset(self, resolution: int) -> Path:
        """Images of this size, as training reads them."""
        folder = self.folder / str(resolution)
        if not folder.is_dir():
            subject.write(subject.images(IMAGES, resolution), folder)
        return folder

    def operations(self, resolution: int) -> float:
        """Of a forward and a backward pass for one row with a LoRA, as PyTorch counts them; no optimizer."""
        if resolution not in self._operations:
            model = self.at(resolution)
            latents = model.encode_images(subject.images(1, resolution)).mean_NChw
            fresh = Fresh(adapter=LowRankAdapter(rank=RANK), seed=None)
            with model.attach([fresh]) as trainable, FlopCounterMode(display=False) as counter:
                timesteps = torch.full((1,), 500, device=model.device)
                sizes = torch.full((1, 6), float(resolution), device=model.device)
                trainable.predict(latents, timesteps, ["wrong"], sizes).square().mean().backward()
            self._operations[resolution] = counter.get_total_flops()
        return self._operations[resolution]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Seconds of a step of all runs of a pack, and the highest number of bytes where the device counts."""

    seconds: float
    peak: int | None


def plain_steps(setting: Setting, resolution: int) -> Steps:
    """The plain loop at batch 1."""
    model = setting.at(resolution)
    run = subject.training_run(model, steps=1, batch_size=1, rank=RANK)
    clock = _Clock(model.device, setting.seconds)
    images = subject.images(IMAGES, resolution)
    with plain_training(setting.pipelines, images, run.training, rank=RANK) as loop, suppress(_Enough):
        for step in range(1, MOST_STEPS):
            loop.step()
            clock.tick(step)
    return clock.found()


def packed_steps(
    setting: Setting,
    resolution: int,
    *,
    together: int = 1,
    adapter: LowRankAdapter | None = None,
    batch_size: int = 1,
    checkpointing: bool = False,
    compiled: bool = False,
) -> Steps:
    """The harness's own loop. Raises DoesNotFit where the pack is trained in halves, for lack of memory."""
    clock = _Clock(setting.model.device, setting.seconds)
    how = {"checkpointing": checkpointing, "compiled": compiled}
    watched_steps(
        setting, resolution, clock.tick, together=together, adapter=adapter, batch_size=batch_size, **how
    )
    return clock.found()


def watched_steps(
    setting: Setting,
    resolution: int,
    tick: Callable[[int], None],
    *,
    together: int,
    adapter: LowRankAdapter | None = None,
    batch_size: int = 1,
    **how: bool,
) -> None:
    """Train until `tick`, which is called after each step of the pack, calls `enough`."""
    model = setting.at(resolution)
    reached = [0] * together

    def saver(number: int) -> Callable[[int], bool]:
        def save_at(step: int) -> bool:
            reached[number] = step
            if number == 0 and min(reached) < step - 1:
                raise DoesNotFit(f"{together} runs do not fit into memory together")
            if number == together - 1:
                tick(step)
            return False

        return save_at

    asked: dict[str, Any] = {"steps": MOST_STEPS, "batch_size": batch_size, "rank": RANK, "adapter": adapter}
    jobs = [
        subject.job(
            subject.training_run(model, **asked, seed=seed), setting.dataset(resolution), save_at=saver(seed)
        )
        for seed in range(together)
    ]
    with suppress(_Enough):
        train(jobs, model, at_once=together, **how)


def enough() -> None:
    """End the steps that are being made."""
    raise _Enough


class _Clock:
    """Times as many steps as take about `seconds`, after a few to warm up, and then ends them."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._device, self._seconds = device, seconds
        self._marks: list[tuple[int, Spent]] = []
        self._last = MOST_STEPS
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def tick(self, step: int) -> None:
        """Called after each step. Raises _Enough after the last one."""
        if step not in (WARM_UP, WARM_UP + 1, self._last):
            return
        self._marks.append((step, now(self._device)))
        if step == WARM_UP + 1:
            one = self._marks[1][1].wall - self._marks[0][1].wall
            self._last = step + min(max(int(self._seconds / one), 1), MOST_STEPS - step - 1)
        elif step == self._last:
            enough()

    def found(self) -> Steps:
        """What was measured."""
        (first, start), *_, (last, end) = self._marks[1:]
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
        return Steps(seconds=(end.wall - start.wall) / (last - first), peak=peak)
