"""A UNet's transformer blocks, which are most of it and alike, through torch.compile."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock


@contextmanager
def compiled_blocks(unet: torch.nn.Module) -> Iterator[None]:
    """Each block is compiled when it is first called, or called in another shape or with other layers in it.

    As diffusers' `compile_repeated_blocks`, which cannot be undone. On leaving, nothing compiled is left:
    PyTorch compiles one function only so many times, and would count the next pack's blocks with these.
    """
    blocks: list[Any] = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    with ExitStack() as undone:
        undone.callback(torch.compiler.reset)
        for block in blocks:
            block.forward = torch.compile(block.forward, dynamic=False)
            undone.callback(delattr, block, "forward")
        yield
