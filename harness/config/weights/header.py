"""What a file of weights holds, by name and shape, without its numbers and without torch.

A .safetensors file has a header. A .bin file is a pickle in a zip archive: it is read by an unpickler that
knows tensors and plain containers alone, so that nothing in it can run.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from harness.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MOST_PICKLE_BYTES = 64 * 2**20  # of names and shapes alone


@dataclass(frozen=True, kw_only=True)
class Header:
    """The shape of every tensor of a file by its name, and what the file says beside them."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """The header of a .safetensors file, or of a .bin file that holds nothing but tensors.

    Raises ModelError where the file is missing, damaged, empty, or holds more than tensors.
    """
    header = _of_pickle(path) if path.suffix in PICKLES else _of_safetensors(path)
    if not header.shapes:
        raise ModelError(f"{path} holds no tensors")
    return header


def _of_safetensors(path: Path) -> Header:
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            return Header(shapes=shapes, metadata=file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({error}); give a whole .safetensors file") from error


# Of each type that has NaN: the type of its bits, and the bits that are all set in what is not finite.
NOT_FINITE = {
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F80 << 16),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}


def not_finite(path: Path) -> str | None:
    """The first tensor of a .safetensors file, which `read_header` took, that has a NaN or an infinity."""
    content = np.memmap(path, np.uint8, "r")
    length = int(content[:8].view("<u8")[0])
    header = json.loads(bytes(content[8 : 8 + length]))
    for name, about in header.items():
        if about.get("dtype") in NOT_FINITE:
            kind, bits = NOT_FINITE[about["dtype"]]
            begin, end = about["data_offsets"]
            numbers = np.frombuffer(
                content, kind, (end - begin) // np.dtype(kind).itemsize, 8 + length + begin
            )
            if ((numbers & np.dtype(kind).type(bits)) == bits).any():
                return str(name)
    return None


def _of_pickle(path: Path) -> Header:
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if entry.file_size > MOST_PICKLE_BYTES:
                raise pickle.UnpicklingError(f"{entry.file_size} bytes of names")
            with archive.open(entry) as file:
                content = _Unpickler(file).load()
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{path} cannot be read as tensors ({error or 'cut short'}); save it as .safetensors"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, _Shape) for key, value in content.items()
    ):
        raise ModelError(f"{path} holds more than tensors by their names; save those as .safetensors")
    return Header(shapes={key: tuple(value) for key, value in content.items()})


class _Shape(tuple[int, ...]):
    """What is left of a tensor."""


class _Unpickler(pickle.Unpickler):
    """Reads tensors as their shapes; every other class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): dict,
            ("torch._utils", "_rebuild_tensor_v2"): _shape,
            ("torch._utils", "_rebuild_tensor_v3"): _shape,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage"):  # types of numbers and of storage
            return name
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is code")

    def persistent_load(self, pid: Any) -> Any:
        """A storage, which is not looked at."""
        return pid


def _shape(storage: Any, offset: int, size: Any, *others: Any) -> _Shape:
    return _Shape(size)
