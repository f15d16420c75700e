"""Data-parallel training: the rows of a step shared out among the processes of torch.distributed.

Without an initialised process group this process is the only one.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter


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
