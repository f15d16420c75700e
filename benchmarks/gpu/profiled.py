"""Part 4: where the time of a training step goes, by PyTorch's profiler."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu.parts import Measurement, Part, Row, Values
from benchmarks.gpu.setting import WARM_UP, Setting, enough, watched_steps
from benchmarks.gpu.training import numbers
from benchmarks.timing import now
from harness.diffusion.adapters import grouped, packed

STEPS = 2  # that are recorded
ADAPTERS = "adapters"  # the name of the range around their layers' own products
KINDS = {  # by what the names of PyTorch's operations contain, the first that fits
    "attention": ("attention",),
    "convolutions": ("conv",),
    "matrix products": ("mm", "linear", "matmul"),
}
OPTIMIZER, REST = "optimizer", "norms, activations, copies"
ORDER = ("matrix products", "attention", "convolutions", ADAPTERS, OPTIMIZER, REST)


def part(setting: Setting, *, limit: float) -> Part:
    """A step alone and of a pack, in the usual size. `idle` is what is left of the clock on the wall."""
    return Part(
        name="profile",
        title="Where a step's time goes",
        limit=limit,
        measurements=lambda: [
            Measurement(
                what={"way": "harness, alone" if size == 1 else f"harness, {size} packed"},
                measure=partial(_measured, setting, size),
            )
            for size in ((1,) if setting.small else (1, 8))
        ],
        columns=_columns,
    )


def _measured(setting: Setting, together: int) -> Values:
    device = setting.model.device
    cuda = device.type == "cuda"
    recorder = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
    walls = []

    def tick(step: int) -> None:
        if step == WARM_UP:
            walls.append(now(device).wall)
            recorder.start()
        elif step == WARM_UP + STEPS:
            walls.append(now(device).wall)
            recorder.stop()
            enough()

    with _ranges():
        watched_steps(setting, setting.resolutions[0], tick, together=together)
    seconds, launches = by_kind(recorder.events(), cuda=cuda)
    values: Values = {kind: seconds[kind] / STEPS for kind in ORDER}
    return values | {"s": (walls[1] - walls[0]) / STEPS, "launches": launches / STEPS}


@contextmanager
def _ranges() -> Iterator[None]:
    """While the block runs, the profiler sees what is an adapter's."""
    inner = grouped.add_low_rank

    def add_low_rank(*args: Any, **kwargs: Any) -> torch.Tensor:
        with record_function(ADAPTERS):
            return inner(*args, **kwargs)

    with mock.patch.object(packed, "add_low_rank", add_low_rank):
        yield


def by_kind(events: Iterable[Any], *, cuda: bool) -> tuple[dict[str, float], int]:
    """Seconds of each kind on the device, and how many operations it was given.

    A backward operation is of the kind of the forward one with its sequence number.
    """
    events = [event for event in events if not cuda or event.device_type.name == "CPU"]
    own = {
        event.sequence_nr
        for event in events
        if event.sequence_nr >= 0 and ADAPTERS in (above.name for above in _and_above(event))
    }
    seconds: dict[str, float] = defaultdict(float)
    launches = 0
    for event in events:
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        launches += len(event.kernels) if cuda else event.name.startswith("aten::")
        seconds[_kind(event, own)] += microseconds / 1e6
    return seconds, launches


def _kind(event: Any, own: set[int]) -> str:
    names = []
    for above in _and_above(event):
        names.append(above.name)
        if above.name == ADAPTERS or above.sequence_nr in own:
            return ADAPTERS
    if any(name.startswith("Optimizer.step") for name in names):
        return OPTIMIZER
    for kind, parts in KINDS.items():
        if any(part in name for name in names if "::" in name for part in parts):
            return kind
    return REST


def _and_above(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _columns(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    values = numbers(row)
    busy = sum(values[kind] for kind in ORDER)
    shares = {kind: f"{100 * values[kind] / values['s']:.0f} %" for kind in ORDER}
    idle = f"{100 * max(0.0, 1 - busy / values['s']):.0f} %"
    return {
        "s per step": f"{values['s']:.4g}",
        **shares,
        "idle": idle,
        "operations": f"{values['launches']:.0f}",
    }
