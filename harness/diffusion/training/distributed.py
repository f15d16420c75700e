"""Data-parallel training: the rows of a step divided among the processes of torch.distributed.

Without a process group this process is the only one. accelerate keeps device and precision in class
attributes of the process; a warm worker trains runs of other settings in turn, so each run gets a state of
its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor
from torch.nn import Parameter

from harness.config.schema.model import Precision

SHARED_STATES = (PartialState, AcceleratorState, GradientState)


@contextmanager
def fresh_accelerators(
    device: torch.device, *, precision: Precision, count: int
) -> Iterator[list[Accelerator]]:
    """Accelerators that know of no earlier one; on leaving, accelerate's shared state is what it was.

    Several, because each scales the gradients of its own run. Under `fp16` gradients are scaled against
    underflow, which needs an accelerator: on a CPU there is no autocast for it, and the model's own dtype
    decides.
    """
    before = [dict(state._shared_state) for state in SHARED_STATES]
    for state in SHARED_STATES:
        state._shared_state.clear()
    try:
        autocast = precision != "fp32" and not (precision == "fp16" and device.type == "cpu")
        yield [
            Accelerator(
                cpu=device.type == "cpu",
                device_placement=False,
                mixed_precision=precision if autocast else "no",
            )
            for _ in range(count)
        ]
    finally:
        for state, content in zip(SHARED_STATES, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(content)


def rank_and_size() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share(rows: int, *, rank: int, size: int) -> range:
    """The rows of one process: neighbours, and as many as any other process's, or one more."""
    return range(rows * rank // size, rows * (rank + 1) // size)


def sum_over_processes(parameters: Sequence[Parameter], loss: Tensor) -> Tensor:
    """Add up the gradients of all processes in place, and their losses, in one message; returns the loss."""
    if rank_and_size()[1] == 1:
        return loss
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters)
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.view(1)])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
    return flat[-1]
