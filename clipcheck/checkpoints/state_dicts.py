"""Read files of `torch.save`, in the old format and in the one since torch 1.6, running no code.

Training code saves many objects beside the weights: numpy numbers, dates, paths, options. The
unpickler here turns tensors into `TensorRecord`s, and every other object into an `Inert`, which has
no behaviour. Names that training code does not use are refused.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from clipcheck.checkpoints.pickles import MOST_BYTES, survey
from clipcheck.checkpoints.records import MappedFile
from clipcheck.checkpoints.unpickle import (
    ITEM_SIZES,
    STORAGE_DTYPES,
    Helper,
    StorageRecord,
    TensorRecord,
    meta_record,
    storage_record,
    tensor_record,
)
from clipcheck.errors import ArchitectureError, DamagedError, UnsafeError, first_line

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of `torch.save` files before torch 1.6: a pickle of torch's magic number."""

_LEGACY_PICKLES = 5
"""Number of pickles before the weights: magic number, protocol, system, the object, the keys of the
storages."""

_LENGTH_BYTES = 8
"""Bytes of the number of elements before each storage of an old file."""

_STORAGES = {
    **STORAGE_DTYPES,
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}
_ITEM_SIZES = {**ITEM_SIZES, "complex64": 8, "complex128": 16}

_DTYPE = re.compile(r"(b?float|b?complex|[qu]*int|bits|bool)\w*")

_MAPPING = re.compile(r"collections\.(OrderedDict|defaultdict|Counter)")

_INERT = re.compile(
    r"collections\.deque|builtins\.(set|frozenset|complex|slice|x?range|object|type|NoneType|Ellipsis"
    r"|dict|list|tuple|int|long|float|str|unicode|bool|bytes)"
    r"|(copyreg|copy_reg)\._reconstructor"
    # Types of Python's standard library, such as dates and paths.
    r"|datetime\.(datetime|date|time|timedelta|timezone)|argparse\.Namespace|types\.SimpleNamespace"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|uuid\.UUID|decimal\.Decimal"
    r"|fractions\.Fraction|random\.Random|typing\.\w+"
    # Numbers, arrays and states of random number generators.
    r"|numpy\.(dtype|ndarray|dtypes\.\w+DType|(bool|u?int|float|complex|str|bytes|datetime"
    r"|timedelta)\w*)"
    r"|numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|numpy\.ma(\.core)?\.(_mareconstruct|MaskedArray)"
    r"|numpy\.random\.(_pickle\.__\w+_ctor|_\w+\.[A-Z]\w*|bit_generator\.\w*SeedSequence"
    r"|mtrand\.RandomState)"
    r"|torch\.(Size|device|storage\.\w*TypedStorage|torch_version\.TorchVersion|(_tensor\.)?Tensor"
    r"|Generator|nn\.parameter\.Buffer|optim\.[\w.]*\b[A-Z]\w*|(cuda\.)?amp\.[\w.]*\b[A-Z]\w*"
    r"|(cuda\.)?amp\.grad_scaler\._refresh_per_optimizer_state|serialization\._get_layout)"
    # Classes of libraries, with options or the state of a training run.
    r"|(omegaconf|pytorch_lightning|lightning|lightning_fabric|lightning_utilities|torchmetrics"
    r"|transformers|accelerate|deepspeed|mmengine|mmcv|yacs|ml_collections|easydict|addict|hydra"
    r"|torchvision\.transforms)\.[\w.]*\b[A-Z]\w*"
)
"""Names that training code saves beside the weights."""

_OTHER_TENSORS = re.compile(
    r"torch\._utils\._rebuild_(sparse|q|nested|wrapper_subclass|device)\w*"
    r"|torch\.(cuda\.)?sparse\.\w+|torchao\.[\w.]+|bitsandbytes\.[\w.]+"
    r"|torch\.distributed\.[\w.]*(DTensor|ShardedTensor)"
)


class Inert(dict[object, object]):
    """Replacement of any object but a tensor: its items and attributes, without behaviour.

    Attributes:
        attributes: its state in the pickle, if that is a mapping.
    """

    attributes: Mapping[object, object]

    def __new__(cls, *_: object, **__: object) -> Inert:
        """Make one without items or attributes. Not in `__init__`, which an unpickler may not
        call."""
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        # Not copied: any number of objects may share a state.
        self.attributes = state if isinstance(state, dict) else {}

    def _drop(self, _: object) -> None:
        """Ignore the elements that a list or a set would add."""

    append = extend = add = _drop

    # By identity, since it may be a key of a mapping.
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class _Items(Inert):
    """A mapping of Python. Its state is not its contents: a state dict's has version numbers."""

    def __setstate__(self, state: object) -> None:
        pass


class _GreedyError(Exception):
    """A call that would use as much memory or time as the file asks for."""


def read_pickle(pickled: bytes, path: Path) -> object:
    """Return the object of a file since torch 1.6, with `TensorRecord`s and `Inert` objects in it.

    Raises:
        DamagedError: it is not a pickle, or reading it could take all memory or unlimited time.
        ArchitectureError: it has sparse or quantized tensors.
        UnsafeError: it has a name that training code does not use.
    """
    return _read(pickled, 1, path)[0][0]


class LegacyFile:
    """A file as `torch.save` wrote it before torch 1.6.

    Attributes:
        saved: the object, with `TensorRecord`s and `Inert` objects in it.

    Raises:
        DamagedError, ArchitectureError, UnsafeError: as for `read_pickle`.
    """

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        found, end, storages = _read(self._file.buffer[:MOST_BYTES], _LEGACY_PICKLES, path)
        _, _, system, self.saved, keys = found
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise DamagedError(
                "its weights are big-endian",
                remedy="Write the file again on a little-endian machine.",
                path=path,
            )
        self._places = self._find(keys, storages, end)
        self._storages: dict[str, bytearray] = {}

    def _find(
        self, keys: object, storages: Mapping[str, StorageRecord], at: int
    ) -> dict[str, tuple[int, int]]:
        """Find the begin and end of each storage, which follows its number of elements."""
        places = {}
        for key in keys if isinstance(keys, list) else ():
            storage = storages.get(key) if isinstance(key, str) else None
            if storage is None or key in places:
                raise self._damaged("it lists a storage that no tensor uses")
            begin = at + _LENGTH_BYTES
            if int.from_bytes(self._file.buffer[at:begin], "little") != storage.length:
                raise self._damaged("a storage has another length than its tensor says")
            at = begin + storage.length * _ITEM_SIZES[storage.dtype]
            places[key] = begin, at
        if at > len(self._file):
            raise self._damaged("it was cut off")
        return places

    def read(self, storage: StorageRecord) -> bytearray:
        """Return a copy of the bytes of a storage: in these files they are not aligned.

        Raises:
            DamagedError: the file does not have the storage.
        """
        key = storage.key
        if key not in self._places:
            raise self._damaged("the storage of a tensor is missing")
        if key not in self._storages:
            self._storages[key] = bytearray(self._file.buffer[slice(*self._places[key])])
        return self._storages[key]

    def _damaged(self, problem: str) -> DamagedError:
        return DamagedError(problem, path=self._file.path)


def _read(
    data: bytes, pickles: int, path: Path
) -> tuple[list[object], int, dict[str, StorageRecord]]:
    """Return the objects of consecutive pickles, the position after these, and their storages."""
    storages: dict[str, StorageRecord] = {}
    try:
        survey(data, room=path.stat().st_size, pickles=pickles)
        file = io.BytesIO(data)
        found = [_Unpickler(file, path, storages).load() for _ in range(pickles)]
    except (UnsafeError, ArchitectureError):
        raise
    except _GreedyError as error:
        raise _unsafe(str(error), "could use any amount of memory or time", path) from error
    # An altered pickle can make the unpickler raise nearly any exception; that is no defect here.
    except Exception as error:
        problem = f"its pickle cannot be read ({first_line(error)[:120]})"
        raise DamagedError(problem, path=path) from error
    return found, file.tell(), storages


def _unsafe(name: str, harm: str, path: Path) -> UnsafeError:
    return UnsafeError(
        f"its pickle asks for {name.removeprefix('builtins.')[:80]}, which {harm}; nothing was run",
        remedy="If it is yours, save only model.state_dict(), not the whole model or the training "
        "state; if it is not, do not load it with anything else.",
        path=path,
    )


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, path: Path, storages: dict[str, StorageRecord]) -> None:
        super().__init__(file)
        self._path = path
        self._storages = storages

    def find_class(self, module: str, name: str) -> Callable[..., object] | str:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and _DTYPE.fullmatch(name):
            return name
        if full in _MAKERS:
            return _MAKERS[full]
        if _MAPPING.fullmatch(full):
            return _Items
        if _INERT.fullmatch(full) or full in _trusted():
            return Inert
        if _OTHER_TENSORS.fullmatch(full):
            raise ArchitectureError(
                f"expected dense weights, found tensors of {full[:80]}: they are sparse, "
                "quantized, sharded or of a special class",
                remedy="Save the model's whole state dict before it is quantized or sharded.",
                path=self._path,
            )
        raise _unsafe(full, "could run code", self._path)

    def persistent_load(self, pid: object) -> StorageRecord:
        # Before torch 1.6 a sixth element told that this is a part of another storage.
        if isinstance(pid, tuple) and len(pid) == 6 and pid[5] is None:
            pid = pid[:5]
        storage = storage_record(pid, _ITEM_SIZES)
        if self._storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError("two storages have the same name")
        return storage


def _trusted() -> set[str]:
    """Return the names that the caller told torch to trust."""
    import torch

    return {
        each[1] if isinstance(each, tuple) else f"{each.__module__}.{each.__qualname__}"
        for each in torch.serialization.get_safe_globals()
    }


def _typed_tensor(storage: StorageRecord, *arguments: object) -> TensorRecord:
    """Rebuild a tensor like `torch._utils._rebuild_tensor_v3`, from a storage of bytes and a
    separate dtype."""
    import torch

    offset, shape, stride, _, _, dtype = arguments[:6]
    if not (isinstance(dtype, str) and _DTYPE.fullmatch(dtype) and hasattr(torch, dtype)):
        raise pickle.UnpicklingError("a tensor has no known dtype")
    length = storage.length // getattr(torch, dtype).itemsize
    typed = dataclasses.replace(storage, dtype=dtype, length=length)
    return tensor_record(typed, offset, shape, stride)


def _meta_tensor(dtype: object, shape: object, stride: object, *_: object) -> TensorRecord:
    if not (isinstance(dtype, str) and _DTYPE.fullmatch(dtype)):
        raise pickle.UnpicklingError("a tensor has no known dtype")
    return meta_record(dtype, shape, stride)


def _of_type(function: object, _: object, arguments: object, *__: object) -> object:
    """Rebuild like `torch._tensor._rebuild_from_type_v2`: a tensor with attributes, which are
    dropped."""
    if not (callable(function) and isinstance(arguments, tuple)):
        raise pickle.UnpicklingError("it calls an object that is not a function")
    return function(*arguments)


def _tensor(value: object, *_: object) -> object:
    return value


def _literal(name: str) -> Callable[..., object]:
    """Return a replacement of a call that makes bytes: only strings are allowed as arguments."""

    def made(*arguments: object) -> Inert:
        texts = all(isinstance(each, str | Inert) for each in arguments)
        if not texts or not {*arguments[1:]} <= {"latin1", "latin-1"}:
            raise _GreedyError(name)
        return Inert()

    return made


_MAKERS = {
    name: Helper(function)
    for name, function in (
        ("torch._utils._rebuild_tensor", tensor_record),
        ("torch._utils._rebuild_tensor_v2", tensor_record),
        ("torch._utils._rebuild_tensor_v3", _typed_tensor),
        ("torch._utils._rebuild_meta_tensor_no_storage", _meta_tensor),
        ("torch._utils._rebuild_parameter", _tensor),
        ("torch._utils._rebuild_parameter_with_state", _tensor),
        ("torch._tensor._rebuild_from_type_v2", _of_type),
        ("torch.nn.parameter.Parameter", _tensor),
        ("_codecs.encode", _literal("_codecs.encode")),
        ("builtins.bytearray", _literal("bytearray")),
    )
}
