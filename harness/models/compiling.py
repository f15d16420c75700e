"""A UNet in training through torch.compile."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

CHANGES = ("_forward_hooks", "gradient_checkpointing")  # of a frozen base, from one pack to the next


@contextmanager
def compiled_unet(unet: Any) -> Iterator[Callable[..., Any]]:
    """The same function, compiled when it is first called and where what it is called with is new.

    On a CPU it is called from C++, not from Python: a small model's step has hundreds of short kernels.
    """
    options: dict[str, Any] = {"guard_filter_fn": _kept}
    if unet.device.type == "cpu":
        options["cpp_wrapper"] = True
    # By default Dynamo takes it that hooks never change: a pack would be trained where the one before it was.
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        yield torch.compile(unet, options=options)


def _kept(guards: Sequence[Any]) -> list[bool]:
    """Which of Dynamo's guards are looked at before each pass: not those of what never changes.

    A UNet has thousands; on a small model looking at them takes a sixteenth of the step.
    """
    return [not guard.is_global and _may_change(guard) for guard in guards]


def _may_change(guard: Any) -> bool:
    """All but the frozen base; of that its shapes, and what adapters and checkpointing do to it."""
    in_base = "_modules" in guard.name
    return not in_base or guard.guard_type == "TENSOR_MATCH" or any(name in guard.name for name in CHANGES)
