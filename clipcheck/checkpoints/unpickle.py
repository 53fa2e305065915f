"""Read the object tree of a TorchScript archive without running any of its code.

The pickles in an archive refer to TorchScript classes, to storages and to a few helpers
(torch/csrc/jit/serialization/pickler.cpp). The unpickler here accepts only these names. It turns
objects of the archive's classes into `ScriptObject`s, and tensors into `TensorRecord`s.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipcheck.checkpoints.pickles import survey
from clipcheck.checkpoints.records import Records
from clipcheck.errors import ArchitectureError, DamagedError, UnsafeError

STORAGE_DTYPES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
}
"""Dtypes by the names of torch's storage classes (torch/storage.py)."""

ITEM_SIZES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}
"""Bytes of an element, by dtype."""

_MOST_MODULES = 10_000
"""Most modules in an archive's tree, counted again at each occurrence. RN50x64 has about 500."""

_MOST_ATTRIBUTES = 1_000_000
"""Most attributes of all these modules together."""

_MOST_NAME = 1000
"""Most characters of a weight's name, which includes the names of all modules above it."""

_MOST_KEY = 100
"""Most characters of a storage's name. torch numbers storages."""

META = "meta"
"""The location of a tensor without values."""

_MOST_ELEMENTS = 2**40
"""Most elements of a tensor, also in each dimension. With this limit torch's own computations of
sizes stay within 64 bits."""

_QUANTIZED = "__torch__.torch.classes.quantized"
_QUANTIZED_TENSOR = ("torch._utils", "_rebuild_qtensor")
"""The function in the pickle of an archive with quantized weights."""


class _Unstated:
    """Base class of objects whose state a pickle cannot change."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets the state of an object that has none")


@dataclass(frozen=True)
class StorageRecord(_Unstated):
    """``length`` elements in the record ``key``, saved from the device ``location``."""

    dtype: str
    key: str
    location: str
    length: int


@dataclass(frozen=True)
class TensorRecord(_Unstated):
    """Location of a tensor. ``offset`` and ``stride`` are in elements."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class ScriptObject:
    """Replacement of an object of the archive: its attributes, without behaviour."""

    attributes: dict[str, object]

    def __new__(cls, *_: object) -> ScriptObject:
        """Make one without attributes. Not in `__init__`, which an unpickler does not call."""
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"the state of an object is a {type(state).__name__}")
        self.attributes = state


def read_tensors(records: Records) -> dict[str, TensorRecord]:
    """Return the tensors of the archive's module tree, by their names in the state dict.

    Raises:
        ArchitectureError: it has quantized weights.
        DamagedError: the records cannot be read.
        UnsafeError: the pickle has a name that TorchScript does not write.
    """
    root = _load(records)
    if not isinstance(root, ScriptObject):
        raise _damaged(records.file.path, f"data.pkl holds a {type(root).__name__}, not a module")
    return dict(_flatten(root, records.file.path))


def _load(records: Records) -> object:
    path = records.file.path
    try:
        pickled = records.read("data.pkl")
        if odd := survey(pickled, room=len(records.file)).odd:
            raise pickle.UnpicklingError(odd)
        return _ArchiveUnpickler(pickled, path).load()
    except (ArchitectureError, DamagedError, UnsafeError):
        raise
    # An altered pickle can make the unpickler raise nearly any exception; that is no defect here.
    except Exception as error:
        raise _damaged(path, f"data.pkl cannot be read ({error})") from error


def _flatten(root: ScriptObject, path: Path) -> Iterator[tuple[str, TensorRecord]]:
    pending = [("", root)]
    met = attributes = 0
    while pending:
        prefix, module = pending.pop()
        met += 1
        attributes += len(module.attributes)
        # If modules contain each other, the loop would not end.
        if met > _MOST_MODULES:
            raise _damaged(path, f"it has more than {_MOST_MODULES} modules")
        if attributes > _MOST_ATTRIBUTES:
            raise _damaged(path, f"its modules have more than {_MOST_ATTRIBUTES} attributes")
        children = []
        for name, value in module.attributes.items():
            if not isinstance(name, str) or len(prefix) + len(name) > _MOST_NAME:
                raise _damaged(path, "it has an attribute without a name, or with a very long one")
            if isinstance(value, TensorRecord):
                yield f"{prefix}{name}", value
            elif isinstance(value, ScriptObject):
                children.append((f"{prefix}{name}.", value))
        pending += reversed(children)


def _damaged(path: Path, problem: str) -> DamagedError:
    return DamagedError(f"not a valid TorchScript archive: {problem}", path=path)


class _ArchiveUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> Callable[..., object] | str:
        if module == _QUANTIZED or (module, name) == _QUANTIZED_TENSOR:
            raise ArchitectureError(
                f"it is quantized: its pickle names {module}.{name}; expected the weights of a "
                "CLIP model, not quantized",
                remedy="Give the archive from before quantize_dynamic. Quantized weights of "
                "archives cannot be compared.",
                path=self._path,
            )
        if module == "__torch__" or module.startswith("__torch__."):
            return ScriptObject
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        known = _HELPERS.get((module, name))
        if known is None:
            raise UnsafeError(
                f"its pickle asks for {module}.{name}, which TorchScript does not write and which "
                "could run code; nothing was run",
                remedy="Do not load this file with anything else. Ask its author for the "
                "weights as safetensors.",
                path=self._path,
            )
        return known

    def persistent_load(self, pid: object) -> StorageRecord:
        return storage_record(pid, ITEM_SIZES)


def storage_record(pid: object, dtypes: Container[str]) -> StorageRecord:
    """Return the storage of a persistent id.

    Args:
        pid: as `torch.save` and TorchScript write it, with a dtype's name in place of the class.

    Raises:
        UnpicklingError: the id is not that of a storage.
    """
    if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
        raise pickle.UnpicklingError("a persistent id is not that of a storage")
    _, dtype, key, location, length = pid
    if not all(isinstance(text, str) for text in (dtype, key, location)):
        raise pickle.UnpicklingError("a storage has no known dtype or no name")
    if dtype not in dtypes or type(length) is not int or length < 0:
        raise pickle.UnpicklingError("a storage has no known dtype or no size")
    if len(key) > _MOST_KEY:
        raise pickle.UnpicklingError("a storage has a very long name")
    return StorageRecord(dtype, key, location, length)


def tensor_record(
    storage: object, offset: object, shape: object, stride: object, *_: object
) -> TensorRecord:
    """Return the tensor that `torch._utils._rebuild_tensor_v2` would make.

    Its further arguments concern gradients, and are ignored.

    Raises:
        UnpicklingError: it is not a valid tensor, or it reaches beyond its storage.
    """
    if not isinstance(storage, StorageRecord):
        raise pickle.UnpicklingError("a tensor without a storage")
    tensor = TensorRecord(storage, *_sizes(offset, shape, stride))
    steps = zip(tensor.shape, tensor.stride, strict=True)
    last = tensor.offset + sum((n - 1) * step for n, step in steps)
    if math.prod(tensor.shape) and last >= storage.length:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return tensor


def meta_record(dtype: str, shape: object, stride: object) -> TensorRecord:
    """Return a tensor without values."""
    return TensorRecord(StorageRecord(dtype, "", META, 0), *_sizes(0, shape, stride))


def _sizes(
    offset: object, shape: object, stride: object
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)):
        raise pickle.UnpicklingError("a tensor with a bad shape")
    numbers = (offset, *shape, *stride)
    # Not `isinstance`: torch does not accept True for 1 here.
    whole = all(type(n) is int and 0 <= n < _MOST_ELEMENTS for n in numbers)
    if not whole or math.prod(n or 1 for n in shape) > _MOST_ELEMENTS:
        raise pickle.UnpicklingError("a tensor with an impossible size, stride or offset")
    return int(offset), shape, stride  # type: ignore[call-overload]


def _as_is(value: object, *_: object) -> object:
    return value


class Helper(_Unstated):
    """A function that a pickle may call. A pickle could change the defaults of a bare function."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        """Call the function."""
        return self._function(*arguments)


_HELPERS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): Helper(tensor_record),
    ("collections", "OrderedDict"): OrderedDict,
    # Typed lists and dicts: attributes other than weights.
    **{
        ("torch.jit._pickle", name): Helper(_as_is)
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
    },
    ("torch.jit._pickle", "restore_type_tag"): Helper(_as_is),
}
