"""The tensors of a TorchScript archive, without running anything of it: OpenAI published its CLIPs so.

``torch.jit.load`` compiles and can run the archive's code, and ``torch.load(weights_only=True)`` refuses such archives. Here only
``data.pkl``, the tree of modules, is read, by an unpickler that knows the few names that the tree of a module needs: tensors become
views of the archive's own bytes, every module an inert table of its attributes, and any other name is refused. Left out: the code,
the constants, quantised and sparse tensors.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coreclip.errors import CoreclipError

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_MOST_DEPTH, _MOST_MODULES = 64, 100_000
# What an unpickler, torch's or the one here, raises on bytes that torch did not write.
UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError,
    struct.error, MemoryError, OverflowError,
)  # fmt: skip


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an archive's modules by their dotted names.

    Raises
    ------
    CoreclipError
        For an archive that is damaged, or whose tree holds more than modules, tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            folder = archive.namelist()[0].partition("/")[0]
            reader = _TreeReader(archive, folder)
            tree = reader.load()
    except (*UNREADABLE, zipfile.BadZipFile) as error:
        raise CoreclipError(
            f"{path} is not a TorchScript archive of tensors and modules ({str(error)[:120]}); copy it anew, or name a state dict"
        ) from None
    return _tensors(path, tree)


class _Module:
    """What stands for a module: its attributes, and nothing that could run."""

    attributes: dict[str, Any]

    def __new__(cls, *_: object) -> "_Module":  # a pickle calls no __init__
        self = super().__new__(cls)
        self.attributes = {}
        return self

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.attributes = state


class _TreeReader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        super().__init__(io.BytesIO(self._read("data.pkl")))
        self._storages: dict[str, Tensor] = {}

    def _read(self, name: str) -> bytes:
        entry = self._archive.getinfo(f"{self._folder}/{name}")
        # torch compresses its code alone: what is stored plainly is no larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"{name} is compressed, which torch never does")
        return self._archive.read(entry)

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which the weights of a model do not need")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"it holds a {kind!r}, not a storage")
        if key not in self._storages:
            content = bytearray(self._read(f"data/{key}"))
            storage = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            if len(storage) != count:
                raise pickle.UnpicklingError(f"storage {key} holds {len(storage)} numbers, {count} are named")
            self._storages[key] = storage
        return self._storages[key]


def _view(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Return a view of a storage that lies within it."""
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise pickle.UnpicklingError("it holds a tensor of an impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and (last >= len(storage) or math.prod(size) > len(storage)):
        raise pickle.UnpicklingError("it holds a tensor that is larger than its storage")
    return storage.as_strided(size, stride, offset)


def _same(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_parameter"): _same,
    ("torch.jit._pickle", "build_intlist"): _same,
    ("torch.jit._pickle", "build_doublelist"): _same,
    ("torch.jit._pickle", "build_boollist"): _same,
    ("torch.jit._pickle", "build_tensorlist"): _same,
    ("torch.jit._pickle", "restore_type_tag"): _same,
}


def _tensors(path: Path, tree: Any) -> dict[str, Tensor]:
    """Return the tensors below a module, by their dotted names."""
    found: dict[str, Tensor] = {}
    left, n_seen = [("", tree, 0)], 0
    while left:
        prefix, module, depth = left.pop()
        if not isinstance(module, _Module):
            continue
        n_seen += 1  # each time that it is met: a few modules that name each other are a tree without end
        if depth > _MOST_DEPTH or n_seen > _MOST_MODULES:
            raise CoreclipError(
                f"{path} has more than {_MOST_MODULES:,} modules, or nests them more than {_MOST_DEPTH} deep, which no model does; "
                "copy it anew"
            )
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
            else:
                left.append((f"{prefix}{name}.", value, depth + 1))
    return found
