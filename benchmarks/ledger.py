"""Counts the bytes of every tensor that an operation makes, on any device, the meta device among them.

On the meta device a tensor has a shape and no numbers, so a step of the full-size model is counted in
seconds on any machine. What an allocator adds (rounding, fragments, cuDNN's workspaces, the CUDA context) is
not seen.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

GIB = 2**30


class Ledger(TorchDispatchMode):
    """Live and highest number of bytes of what is made inside `with`; `known` tensors are not counted."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()
        for tensor in known:
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, made)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._storages:  # a view, or written in place
            return
        self._storages[storage._cdata] = storage
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as a GPU's kernels do it, keeping q, k, v, out; the meta device would keep T × T scores."""

    def attention(query: Tensor, key: Tensor, value: Tensor, **_masks_are_absent: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attention):
        yield
