"""accelerate, kept from outliving a run.

accelerate stores device and precision in class attributes shared by the whole process. A warm worker trains
one run after another with other settings, so each gets a state of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from harness.models.spec import Precision

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
