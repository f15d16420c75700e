"""A UNet in training through torch.compile."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

CHANGES = ("_forward_hooks", "gradient_checkpointing")  # of a frozen base, from one pack to the next


def compile_pass(run: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The same function, compiled when it is first called and where what it is called with is new.

    On a CPU it is called from C++, not from Python: a small model's step has hundreds of short kernels.
    """
    options: dict[str, Any] = {"guard_filter_fn": _kept}
    if device.type == "cpu":
        options["cpp_wrapper"] = True
    return torch.compile(run, options=options)


def _kept(guards: Sequence[Any]) -> list[bool]:
    """Which of Dynamo's guards are looked at before each pass: not those of what never changes.

    A UNet has thousands; on a small model looking at them takes a sixteenth of the step.
    """
    return [not guard.is_global and _may_change(guard) for guard in guards]


def _may_change(guard: Any) -> bool:
    """All but the frozen base; of that its shapes, and what adapters and checkpointing do to it."""
    in_base = "_modules" in guard.name
    return not in_base or guard.guard_type == "TENSOR_MATCH" or any(name in guard.name for name in CHANGES)
