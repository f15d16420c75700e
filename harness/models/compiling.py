"""A UNet in training through torch.compile."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from harness.models.pack_layers import Pass
from harness.spec.adapter import LowRankAdapter


@contextmanager
def compiled_unet(
    unet: Any, current: Pass, adapters: Sequence[LowRankAdapter], *, checkpointing: bool
) -> Iterator[Callable[..., Any]]:
    """The UNet with these adapters, compiled when it is first called and where what it is called with is new.

    On a CPU it is called from C++, not from Python: a small model's step has hundreds of short kernels.
    """

    def run(pack: str, *inputs: Any, **named: Any) -> Any:
        if not pack:  # looked at, it is guarded
            raise ValueError("a pack has a name")
        layered, current.tensors = current.tensors, current.joined()
        predicted = unet(*inputs, **named)
        current.tensors = layered  # or the joined ones would be results of the graph
        return predicted

    options: dict[str, Any] = {}
    if not any(adapter.dropout for adapter in adapters):  # its seeds are others in every pass
        options["guard_filter_fn"] = _of_arguments
    if unet.device.type == "cpu":
        options["cpp_wrapper"] = True
    pack = repr((adapters, checkpointing, unet.dtype, unet.config))
    # By default Dynamo takes it that hooks never change: a pack would be trained where the one before it was.
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        compiled = torch.compile(run, options=options)
        yield lambda *inputs, **named: compiled(f"{pack} {current.rows}", *inputs, **named)


def _of_arguments(guards: Sequence[Any]) -> list[bool]:
    """Dynamo's guards that are looked at before each pass: those of `run`'s arguments and of PyTorch's modes.

    A UNet has thousands, which on a small model take a sixteenth of the step. `pack` stands for all of them.
    """
    return [re.match(r"(pack|inputs|named)\b|$", guard.name) is not None for guard in guards]
