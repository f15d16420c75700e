"""CUDA without a GPU: tensors of the device have shapes, dtypes and no numbers; all others are real.

`with fake_cuda() as cuda:`, and in it the real code with `device=CUDA`. PyTorch's FakeTensorMode raises where
tensors of two devices meet, and where shapes or dtypes do not fit. What is copied from the device to the CPU
is ones; small tensors, as timesteps and counters, have their numbers. Whatever makes the program wait for the
device is noted.

No kernel runs. Nor does autograd's engine, which asks the driver: here `backward` gives every leaf of the
graph a gradient of zeros. So faults in numbers, and in a backward pass, are found on the CPU or not at all.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Module, Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CUDA = "cuda:0"  # with its index: without one PyTorch asks the driver for it
GIB = 2**30
SMALL = 4096  # numbers of a tensor that is computed on the CPU besides

aten = torch.ops.aten
COMPOSED = (aten.to, aten.item, aten.is_nonzero, aten.nonzero_numpy, aten.pin_memory)
FETCHES = (aten._local_scalar_dense.default, aten.nonzero.default)


class _WithoutDriver(FakeTensorMode):
    avoid_device_init = True  # though `torch.cuda.is_available` says otherwise


_MODE = _WithoutDriver(allow_non_fake_inputs=True)  # one for all: tensors of two modes do not mix


class FakeCuda(TorchDispatchMode):
    """Operations on the device's tensors are fake, all others real. `waits`: what waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs = kwargs or {}
        if func.overloadpacket in COMPOSED:  # in inference mode they arrive whole
            with self:
                return func.decompose(*args, **kwargs)
        fakes = [*_fakes(args), *_fakes(kwargs.values())]
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            pinned.was_pinned = True
            return pinned
        if not fakes and to != "cuda":
            return func(*args, **kwargs)
        into_cpu = func is aten.copy_.default and not isinstance(args[0], FakeTensor)
        if func in FETCHES or to == "cpu" or into_cpu:
            self.waits.append(str(func))
            args = tree_map_only(FakeTensor, _on_cpu, args)
            return func(*args, **kwargs)
        if func is aten._to_copy.default and not fakes and not hasattr(args[0], "was_pinned"):
            self.waits.append("copy from memory that is not pinned")
        return self._faked(func, args, kwargs, fakes)

    def _faked(self, func: Any, args: Any, kwargs: Any, fakes: list[FakeTensor]) -> Any:
        with _MODE:
            made = func(*args, **kwargs)
        new = list(_fakes([made]))
        unknown = torch.Tag.nondeterministic_seeded in func.tags or _is_hollow(args)
        if not unknown and all(hasattr(fake, "numbers") for fake in fakes) and _are_small(new):
            args, kwargs = tree_map_only(FakeTensor, lambda fake: vars(fake)["numbers"], (args, kwargs))
            if "device" in kwargs:
                kwargs = kwargs | {"device": "cpu"}
            numbers = func(*args, **kwargs)
            numbers = list(numbers) if isinstance(numbers, list | tuple) else [numbers]
            for fake, on_cpu in zip(new, numbers, strict=True):
                vars(fake)["numbers"] = on_cpu
        elif func._schema.is_mutable:
            for fake in fakes:
                vars(fake).pop("numbers", None)
        return made


def _fakes(values: Iterable[Any]) -> Iterator[FakeTensor]:
    for value in values:
        if isinstance(value, FakeTensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _fakes(value)


def is_fake(tensor: Tensor) -> bool:
    """True on the device."""
    return isinstance(tensor, FakeTensor)


def _are_small(tensors: list[FakeTensor]) -> bool:
    return bool(tensors) and all(tensor.numel() <= SMALL for tensor in tensors)


def _is_hollow(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].is_meta


def _on_cpu(fake: FakeTensor) -> Tensor:
    if hasattr(fake, "numbers"):
        numbers: Tensor = vars(fake)["numbers"]
        return numbers.clone()
    return torch.ones(fake.shape, dtype=fake.dtype)


def leaves(result: Tensor) -> list[Parameter]:
    """The parameters that a backward pass from here would reach."""
    assert result.grad_fn is not None
    waiting, seen, found = [result.grad_fn], {result.grad_fn}, []
    while waiting:
        node: Any = waiting.pop()
        if isinstance(leaf := getattr(node, "variable", None), Parameter):
            found.append(leaf)
        following = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= following
        waiting += following
    return found


def _backward(loss: Tensor) -> None:
    for leaf in leaves(loss):
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)


def _apply(module: Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
    """`Module._apply` with new parameters: it would exchange fake ones in place, which PyTorch refuses."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and (changed := change(parameter)) is not parameter:
                part._parameters[name] = Parameter(changed, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else change(buffer)
    return module


class _Generator(torch.Generator):
    """Of whatever device, it is on the CPU: nothing is drawn on the other."""

    def __new__(cls, device: object = "cpu") -> "_Generator":
        return super().__new__(cls)


DRIVER: dict[str, Any] = {  # what `torch.cuda` would ask the driver
    "is_available": True,
    "is_bf16_supported": True,
    "current_device": 0,
    "device_count": 1,
    "set_device": None,
    "synchronize": None,
    "empty_cache": None,
    "reset_peak_memory_stats": None,
    "mem_get_info": (60 * GIB, 80 * GIB),
    "memory_allocated": 10 * GIB,
    "memory_reserved": 10 * GIB,
    "max_memory_allocated": 20 * GIB,
}


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """The machine has a CUDA device of 80 GiB; on leaving, what was made on it is of no use."""
    cuda = FakeCuda()
    with ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(mock.patch("torch.cuda._lazy_init", lambda: None))
        for name, answer in DRIVER.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", lambda *_, answer=answer: answer))
        stack.enter_context(mock.patch("torch.nn.Module._apply", _apply))
        stack.enter_context(mock.patch("torch.Generator", _Generator))
        stack.enter_context(mock.patch("torch.Tensor.backward", _backward))
        with _MODE:  # gives PyTorch a guard for devices that does not ask the driver
            pass
        before = torch._C._only_lift_cpu_tensors()
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(cuda)
        yield cuda
