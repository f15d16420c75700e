"""The moving average of an adapter over its steps: a second export, often less noisy than the last one."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from harness.models.model import Member


class MovingAverage:
    """Exponential moving average of the parameters after each step, without a share of where they started.

    The weights of steps 1 … n are dⁿ⁻¹ … d, 1, over their sum (as Adam corrects its moments, Kingma & Ba
    2015, section 3): the average of a short run is not all beginning, and every decay d gives another one.
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._average = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step 1, 2, …."""
        newest = (1 - self._decay) / -math.expm1(step * math.log(self._decay))
        difference = torch._foreach_sub([p.detach() for p in self._parameters], self._average)
        torch._foreach_mul_(difference, newest)
        torch._foreach_add_(self._average, difference)

    @torch.no_grad()
    def state_dict(self, member: "Member") -> dict[str, Tensor]:
        """The average under the adapter's own keys, fp32, on the CPU."""
        last = [parameter.detach().clone() for parameter in self._parameters]
        torch._foreach_copy_([p.detach() for p in self._parameters], self._average)
        state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in member.state_dict().items()}
        torch._foreach_copy_([p.detach() for p in self._parameters], last)
        return state

    @torch.no_grad()
    def load_state_dict(self, member: "Member", state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave; the adapter itself is left holding the average."""
        member.load_state_dict(state)
        self._average = [parameter.detach().clone() for parameter in self._parameters]
