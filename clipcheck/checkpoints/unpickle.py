"""Read the object tree of a TorchScript archive without running anything from it.

The pickles in an archive refer to TorchScript classes, to storages and to a few helpers
(torch/csrc/jit/serialization/pickler.cpp). The unpickler here knows these names and no others;
a class of the archive becomes a plain holder of attributes, a tensor becomes a `TensorRecord`.
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
"""Names of torch's storage classes with the dtype of their elements (torch/storage.py)."""

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
"""Modules in an archive's tree, with those met again. RN50x64 has about 500."""

_MOST_ATTRIBUTES = 1_000_000
"""Limit of the attributes of all these modules."""

_MOST_NAME = 1000
"""Characters of a weight's name. It is that of its module and of all above, joined."""

_MOST_KEY = 100
"""Characters of a storage's name. torch counts them."""

META = "meta"
"""The location of a tensor without values."""

_MOST_ELEMENTS = 2**40
"""Limit of a tensor's elements, in any dimension. It keeps what is computed of them within 64 bits
in torch."""

_QUANTIZED = "__torch__.torch.classes.quantized"
_QUANTIZED_TENSOR = ("torch._utils", "_rebuild_qtensor")
"""The function that the pickle of an archive names where its weights are quantized."""


class _Unstated:
    """Made whole by what makes it: a pickle cannot give it another state."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it gives a state to what has none")


@dataclass(frozen=True)
class StorageRecord(_Unstated):
    """A run of ``length`` elements in the record ``key``, written from ``location``."""

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
    """Stands for an instance of any class of the archive: the attributes, and no behaviour."""

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
    """The tensors of the archive's module tree by the names that its state dict has.

    Raises:
        ArchitectureError: it holds quantized weights.
        DamagedError: the records cannot be understood.
        UnsafeError: the pickle names something that has no place in an archive.
    """
    root = _load(records, "data.pkl")
    if not isinstance(root, ScriptObject):
        raise _damaged(records.file.path, f"data.pkl holds a {type(root).__name__}, not a module")
    return dict(_flatten(root, records.file.path))


def read_constants(records: Records) -> tuple[TensorRecord, ...]:
    """The tensors that the archive's code refers to as ``CONSTANTS.cN``, in that order.

    Raises:
        DamagedError: the records cannot be understood.
        UnsafeError: the pickle names something that has no place in an archive.
    """
    constants = _load(records, "constants.pkl")
    if not isinstance(constants, tuple):
        raise _damaged(records.file.path, "constants.pkl does not hold a tuple")
    return tuple(constant for constant in constants if isinstance(constant, TensorRecord))


def _load(records: Records, name: str) -> object:
    path = records.file.path
    try:
        pickled = records.read(name)
        if odd := survey(pickled, room=len(records.file)).odd:
            raise pickle.UnpicklingError(odd)
        return _ArchiveUnpickler(pickled, path).load()
    except (ArchitectureError, DamagedError, UnsafeError):
        raise
    # An altered pickle can make the unpickler raise nearly anything; none of it is a defect here.
    except Exception as error:
        raise _damaged(path, f"{name} cannot be read ({error})") from error


def _flatten(root: ScriptObject, path: Path) -> Iterator[tuple[str, TensorRecord]]:
    pending = [("", root)]
    met = attributes = 0
    while pending:
        prefix, module = pending.pop()
        met += 1
        attributes += len(module.attributes)
        # A tree whose modules contain each other has no end.
        if met > _MOST_MODULES:
            raise _damaged(path, f"it has more than {_MOST_MODULES} modules")
        if attributes > _MOST_ATTRIBUTES:
            raise _damaged(path, f"its modules have more than {_MOST_ATTRIBUTES} attributes")
        children = []
        for name, value in module.attributes.items():
            if not isinstance(name, str) or len(prefix) + len(name) > _MOST_NAME:
                raise _damaged(path, "it has an attribute with no name, or with a very long one")
            if isinstance(value, TensorRecord):
                yield f"{prefix}{name}", value
            elif isinstance(value, ScriptObject):
                children.append((f"{prefix}{name}.", value))
        pending += reversed(children)


def _damaged(path: Path, problem: str) -> DamagedError:
    return DamagedError(f"not a sound TorchScript archive: {problem}", path=path)


class _ArchiveUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> Callable[..., object] | str:
        if module == _QUANTIZED or (module, name) == _QUANTIZED_TENSOR:
            raise ArchitectureError(
                f"it is quantized: its pickle names {module}.{name}, and not the weights of a CLIP "
                "model",
                remedy="Give the archive that was made before quantize_dynamic. Quantized weights "
                "are not compared.",
                path=self._path,
            )
        if module == "__torch__" or module.startswith("__torch__."):
            return ScriptObject
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        known = _HELPERS.get((module, name))
        if known is None:
            raise UnsafeError(
                f"its pickle asks for {module}.{name}, which has no place in a TorchScript "
                "archive and could run code; nothing was run",
                remedy="Do not load this file with anything else. Ask its author for the weights "
                "as safetensors.",
                path=self._path,
            )
        return known

    def persistent_load(self, pid: object) -> StorageRecord:
        return storage_record(pid, ITEM_SIZES)


def storage_record(pid: object, dtypes: Container[str]) -> StorageRecord:
    """The storage that a persistent id names.

    Args:
        pid: as `torch.save` and TorchScript write it, with the name of a dtype for the class.

    Raises:
        UnpicklingError: it is none.
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
    """The tensor that `torch._utils._rebuild_tensor_v2` would make.

    Its further arguments tell of gradients.

    Raises:
        UnpicklingError: it is none, or it reaches beyond its storage.
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
    """A tensor without values."""
    return TensorRecord(StorageRecord(dtype, "", META, 0), *_sizes(0, shape, stride))


def _sizes(
    offset: object, shape: object, stride: object
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)):
        raise pickle.UnpicklingError("a tensor with a bad shape")
    numbers = (offset, *shape, *stride)
    # Not `isinstance`: torch takes no True for 1 there.
    whole = all(type(n) is int and 0 <= n < _MOST_ELEMENTS for n in numbers)
    if not whole or math.prod(n or 1 for n in shape) > _MOST_ELEMENTS:
        raise pickle.UnpicklingError("a tensor with a dimension that none can have")
    return int(offset), shape, stride  # type: ignore[call-overload]


def _as_is(value: object, *_: object) -> object:
    return value


class Helper(_Unstated):
    """A function that a pickle may call. Of a bare one it could change the defaults."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        """Call the function."""
        return self._function(*arguments)


_HELPERS: dict[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): Helper(tensor_record),
    ("collections", "OrderedDict"): OrderedDict,
    # Typed lists and dicts: attributes that are no weights.
    **{
        ("torch.jit._pickle", name): Helper(_as_is)
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
    },
    ("torch.jit._pickle", "restore_type_tag"): Helper(_as_is),
}
