"""Tell the format of a file by its content, and read its tensors through a memory map.

Nothing from the file is run: an archive's pickles go through a restricted unpickler, a state
dict's through torch's own (``weights_only``), and safetensors has no code.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pickle
import re
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.checkpoints import directories, download, registry
from clipcheck.checkpoints.architecture import Spec, infer, specs
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.keymaps import Layout, from_layout, layout_of, spelled
from clipcheck.checkpoints.pickles import MOST_BYTES, survey
from clipcheck.checkpoints.records import ZIP_MAGIC, MappedFile, Records
from clipcheck.checkpoints.training import Entry, read_record
from clipcheck.checkpoints.unpickle import ITEM_SIZES, TensorRecord, read_tensors
from clipcheck.errors import (
    ArchitectureError,
    CheckpointError,
    DamagedError,
    UnknownFormatError,
    UnsafeError,
    first_line,
)

if TYPE_CHECKING:
    import torch

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How `torch.save` files began before torch 1.6: a pickle of torch's magic number."""

_ACCEPTED = "a TorchScript archive, a state dict saved by torch.save, or a safetensors file"
_COPY_AGAIN = "Copy or download the file again, or write it anew."
_WRAPPERS = ("state_dict", "model")
_PARALLEL_PREFIX = "module."
_MOST_REPEATED = 64 << 20
"""Bytes that weights may be read as, though the file has fewer."""

_MOST_HEADER = 16 << 20
"""Bytes of a safetensors file's header. A weight takes a hundred."""

_LEGACY_PICKLES = 5
"""Before the weights: magic number, protocol, system, the state dict, the keys of the storages."""

_DENSE = re.compile(
    r"collections\.(OrderedDict|Counter)|builtins\.(set|complex)"
    r"|torch\.(Size|device|storage\.\w+|(cuda\.)?\w+Storage)"
    r"|torch\.(b?float|b?complex|[qu]*int|bits|bool)\w*|torch\.nn\.parameter\.Parameter"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state"
    r"|meta_tensor_no_storage)"
)
"""What state dicts of dense weights name, and what training code saves beside them. torch allows
more (torch/_weights_only_unpickler.py), some of which takes whatever memory or time it is told."""

_OTHER_TENSORS = re.compile(
    r"torch\._utils\._rebuild_(sparse|q|nested|wrapper_subclass|device)\w*"
    r"|torch\.(cuda\.)?sparse\.\w+"
)
_GREEDY = ("builtins.bytearray", "_codecs.encode")
"""They run nothing; one fills the memory that it is asked for, the other takes its time."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def locate(name: str | os.PathLike[str], download_root: str | os.PathLike[str] | None) -> Path:
    """The file of a released model, fetched where it is not in the cache, or the path itself.

    Raises:
        UnknownModelError: ``name`` is neither a released name nor an existing path.
        DownloadError: the released file could not be fetched.
    """
    path = Path(name)
    if str(name) not in registry.available_models() and _is_there(path):
        return path
    released = registry.find(str(name))
    return download.fetch(released.name, download_root)


def _is_there(path: Path) -> bool:
    """Whether there is something at ``path``, or may be: reading it tells what is in the way."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def open_checkpoint(
    name: str | os.PathLike[str], download_root: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Read a checkpoint, given by a released name or by the path of a file or a folder.

    The keys may be those of the reference implementation, of open_clip or of transformers (see
    `clipcheck.checkpoints.keymaps`). A folder has a configuration, which has to ask for the model
    that clipcheck builds; a file of weights alone does not tell its activation, and QuickGELU, as
    in the released models, is taken for granted.

    Args:
        name: a name from `available_models`, or a path.
        download_root: where released files are kept; by default ``$CLIPCHECK_CACHE``, else
            ``~/.cache/clip``.

    Raises:
        UnknownModelError: ``name`` is neither.
        DownloadError: a released file could not be fetched.
        CheckpointError: the file is no CLIP checkpoint; the subclass tells why.
    """
    path = locate(name, download_root)
    if stat.S_ISDIR(_mode(path)):
        return _open_directory(directories.read(path))
    found = _read(path)
    return _checkpoint(path, found.format, found.tensors, found.records, found.record)


def _open_directory(directory: directories.Directory) -> Checkpoint:
    by_file: dict[Path, dict[str, torch.Tensor]] = {}
    parts = []
    for file in directory.weights:
        found = _read(file)
        if found.format is Format.ARCHIVE:
            raise UnknownFormatError(
                "expected weights alone, found a TorchScript archive",
                remedy="Give the path of the archive itself.",
                path=file,
            )
        by_file[file] = found.tensors
        parts += [] if found.records is None else [found.records]
    directory.require_indexed({file: list(weights) for file, weights in by_file.items()})
    tensors = {key: tensor for weights in by_file.values() for key, tensor in weights.items()}
    checkpoint = _checkpoint(directory.path, directory.format, tensors)
    directory.require(checkpoint.architecture)
    return dataclasses.replace(checkpoint, files=directory.files, parts=tuple(parts))


@dataclasses.dataclass(frozen=True)
class _Found:
    """The contents of a file: its tensors by their keys there, its zip records and its record."""

    format: Format
    tensors: dict[str, torch.Tensor]
    records: Records | None = None
    record: Mapping[str, Entry] = dataclasses.field(default_factory=dict)


def _read(path: Path) -> _Found:
    head = _first_bytes(path)
    if head.startswith(ZIP_MAGIC):
        found = _read_zip(path)
        _require_stored(found.tensors, path)
        return found
    if head.startswith(_LEGACY_MAGIC):
        found = _read_legacy(path)
        _require_stored(found.tensors, path)
        return found
    if _looks_like_safetensors(head, path.stat().st_size):
        weights = _strip_parallel_prefix(_load_safetensors(path, head))
        return _Found(Format.SAFETENSORS, weights)
    raise UnknownFormatError(
        f"expected {_ACCEPTED}; found {_describe(head)}",
        remedy="Give the path of a checkpoint.",
        path=path,
    )


def _require_stored(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """See that reading all weights gives about as many bytes as the file has.

    A stride of 0 makes a tensor of any size of a single number, and any number of tensors may
    share their numbers. A whole model of a few kilobytes would fill all memory when it is cast.
    """
    claimed = sum(t.numel() * t.itemsize for t in tensors.values() if not t.is_meta)
    size = path.stat().st_size
    if claimed > max(2 * size, _MOST_REPEATED):
        raise DamagedError(
            f"its tensors would be {claimed:,} bytes, and the file has {size:,}: they repeat what "
            "they hold",
            remedy="Save a copy of each tensor (tensor.contiguous().clone()), if the file is "
            "yours; if it is not, do not use it.",
            path=path,
        )


def _checkpoint(
    path: Path,
    form: Format,
    tensors: Mapping[str, torch.Tensor],
    records: Records | None = None,
    record: Mapping[str, Entry] | None = None,
) -> Checkpoint:
    # An archive's code has the names of the reference, and goes with its weights.
    layout = Layout.REFERENCE if form is Format.ARCHIVE else layout_of(tensors)
    name = functools.partial(spelled, layout=layout)
    tensors = from_layout(tensors, layout, path)
    architecture = infer(tensors, path, name)
    found = [
        f"{name(key)} ({kind})"
        for key, spec in specs(architecture)
        if key in tensors and (kind := _unusable(tensors[key], spec))
    ]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ArchitectureError(
            f"expected dense weights of {', '.join(_FLOATS[:-1])} or {_FLOATS[-1]} and whole "
            f"numbers in the buffers, found {', '.join(found[:5])}{more}",
            remedy="Save the model's state dict before it is quantized or moved elsewhere.",
            path=path,
        )
    return Checkpoint(path, form, architecture, tensors, records, record=record or {})


def _unusable(tensor: torch.Tensor, spec: Spec) -> str:
    """What ``tensor`` is, where that is nothing that a CLIP model can hold there, or nothing."""
    layout, dtype = (str(kind).removeprefix("torch.") for kind in (tensor.layout, tensor.dtype))
    if layout != "strided" or tensor.is_quantized:
        return f"{layout} {dtype}"
    if tensor.is_meta:
        return f"{dtype} without values"
    if dtype in _FLOATS and (spec.kind != "buffer" or float(tensor).is_integer()):
        return ""
    return "" if spec.kind == "buffer" and dtype in ITEM_SIZES and dtype not in _FLOATS else dtype


def _mode(path: Path) -> int:
    """What kind of thing is there, as `stat` has it."""
    try:
        return path.stat().st_mode
    except OSError as error:
        raise directories.unreadable(path, error) from error


def _first_bytes(path: Path) -> bytes:
    if not stat.S_ISREG(_mode(path)):
        # Opening a pipe would wait for its other end.
        raise UnknownFormatError(
            f"expected {_ACCEPTED}; found a device",
            remedy="Give the path of the file itself.",
            path=path,
        )
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise directories.unreadable(path, error) from error
    if not head:
        raise UnknownFormatError(
            f"expected {_ACCEPTED}; the file is empty", remedy=_COPY_AGAIN, path=path
        )
    return head


def _describe(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, which stands for a file that was not fetched (git lfs pull)"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, as servers send in place of a file that they do not give out"
    if all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head):
        return f"text that begins with {head[:24].decode('ascii')!r}"
    return f"bytes that begin with {head[:8].hex(' ')}"


# --------------------------------------------------------------------------- zip files


def _read_zip(path: Path) -> _Found:
    records = Records(MappedFile(path))
    # The checksums of code, pickles and constants are compared at once: they are small, and they
    # decide how the rest is read and run. torch itself compares none, neither when it loads an
    # archive nor a state dict. Those of the weights are left to `Checkpoint.verify`.
    records.verify(name for name in records.names() if not name.startswith("data/"))
    if "constants.pkl" in records or records.names("code/"):
        return _Found(Format.ARCHIVE, map_tensors(records, read_tensors(records)), records)
    # torch's reader would say that data.pkl is missing in words that help nobody.
    _require_dense(records.read("data.pkl"), path)
    saved = _load_state_dict(path, mmap=True)
    return _Found(Format.STATE_DICT, _unwrap(saved, path), records, read_record(saved))


def map_tensors(records: Records, found: Mapping[str, TensorRecord]) -> dict[str, torch.Tensor]:
    """Tensors over the memory map of the file; reading them is what loads them.

    Raises:
        DamagedError: a record is shorter than its tensor needs.
    """
    if "byteorder" in records and records.read("byteorder") != b"little":
        raise DamagedError(
            "its weights are big-endian, or its byte order was altered",
            remedy="Write the file anew on a little-endian machine.",
            path=records.file.path,
        )
    return {key: _map_tensor(records, tensor) for key, tensor in found.items()}


def _map_tensor(records: Records, tensor: TensorRecord) -> torch.Tensor:
    import torch

    storage = tensor.storage
    record = records[f"data/{storage.key}"]
    if record.size < storage.length * ITEM_SIZES[storage.dtype]:
        raise DamagedError(
            f"the record {record.name!r} has {record.size} bytes, fewer than its tensor needs",
            remedy=_COPY_AGAIN,
            path=records.file.path,
        )
    dtype = getattr(torch, storage.dtype)
    if storage.length == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    flat = torch.frombuffer(
        records.file.buffer, dtype=dtype, count=storage.length, offset=record.offset
    )
    return flat.as_strided(tensor.shape, tensor.stride, tensor.offset)


# --------------------------------------------------------------------------- state dicts


def _read_legacy(path: Path) -> _Found:
    with path.open("rb") as file:
        pickles = file.read(MOST_BYTES)
    _require_dense(pickles, path, pickles=_LEGACY_PICKLES)
    saved = _load_state_dict(path, mmap=False)
    return _Found(Format.STATE_DICT, _unwrap(saved, path), record=read_record(saved))


def _require_dense(pickled: bytes, path: Path, *, pickles: int = 1) -> None:
    """See that torch can read the pickle of a state dict without harm, before it does.

    Raises:
        DamagedError: reading it could take all memory, or any time, or it is no pickle.
        ArchitectureError: it has sparse or quantized tensors.
        UnsafeError: it names what no state dict needs.
    """
    import torch

    try:
        size = path.stat().st_size
        # torch makes the storages of an old file larger, for tensors that reach beyond them.
        reach = max(size, _MOST_REPEATED) if pickles > 1 else math.inf
        names, odd = survey(pickled, room=size, pickles=pickles, reach=reach)
    except ValueError as error:
        raise _unreadable_pickle(str(error), path) from error
    # Whoever calls clipcheck may have told torch that they trust more.
    trusted = {
        each[1] if isinstance(each, tuple) else f"{each.__module__}.{each.__qualname__}"
        for each in torch.serialization.get_safe_globals()
    }
    for name in sorted(name.replace("__builtin__.", "builtins.") for name in names - trusted):
        if _OTHER_TENSORS.fullmatch(name):
            raise ArchitectureError(
                f"expected dense weights, found some that {name} makes: they are sparse, quantized "
                "or of a kind of their own",
                remedy="Save the model's state dict before it is quantized or moved elsewhere.",
                path=path,
            )
        if not _DENSE.fullmatch(name):
            raise _unsafe(name, path)
    if odd:
        raise _unreadable_pickle(odd, path)


def _load_state_dict(path: Path, *, mmap: bool) -> object:
    import torch

    # torch maps a file that it gets by its path alone, and then it also goes by the name: what is
    # called .safetensors it reads as such. An open file it reads for what it is.
    mmap = mmap and not path.name.endswith(".safetensors")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # Of sparse weights, say: what is wrong with any is said by `_checkpoint`.
            warnings.simplefilter("ignore")
            source = path if mmap else file
            return torch.load(source, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused_by_torch(path, error) from error
    # torch and its unpickler raise nearly anything on an altered file.
    except Exception as error:
        raise DamagedError(
            f"torch.load cannot read this state dict ({first_line(error)[:120]})",
            remedy=_COPY_AGAIN,
            path=path,
        ) from error


def _refused_by_torch(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    reason = str(error)
    if "GLOBAL " in reason:
        return _unsafe(reason.partition("GLOBAL ")[2].split()[0], path)
    # torch has its advice before the reason, and more of it behind.
    reason = reason.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    return _unreadable_pickle(reason, path)


def _unsafe(name: str, path: Path) -> UnsafeError:
    harm = "could run code"
    if name in _GREEDY:
        harm = "takes what memory or time it is told"
    return UnsafeError(
        f"its pickle asks for {name.removeprefix('builtins.')[:80]}, which {harm}; nothing was run",
        remedy="If it is yours, save model.state_dict() alone, in place of the whole model or the "
        "training state; if it is not, do not load it with anything else.",
        path=path,
    )


def _unreadable_pickle(reason: str, path: Path) -> DamagedError:
    return DamagedError(
        f"its pickle cannot be read ({reason[:120]})", remedy=_COPY_AGAIN, path=path
    )


def _unwrap(found: object, path: Path) -> dict[str, torch.Tensor]:
    """The state dict itself, out of what training code saves around it."""
    import torch

    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping):
        raise ArchitectureError(
            f"expected a dict of tensors, found a {type(found).__name__}",
            remedy="Save model.state_dict().",
            path=path,
        )
    strange = [key for key, value in found.items() if not isinstance(value, torch.Tensor)]
    if strange:
        key = strange[0]
        raise ArchitectureError(
            f"expected tensors alone, found a {type(found[key]).__name__} under {key!r}",
            remedy="Save model.state_dict() bare, or under the key 'state_dict' or 'model'.",
            path=path,
        )
    # Training code may save parameters. They are weights here, and not for training.
    return _strip_parallel_prefix({str(key): value.detach() for key, value in found.items()})


def _strip_parallel_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the prefix that DistributedDataParallel puts before each key."""
    if not all(key.startswith(_PARALLEL_PREFIX) for key in tensors):
        return tensors
    return {key.removeprefix(_PARALLEL_PREFIX): value for key, value in tensors.items()}


# --------------------------------------------------------------------------- safetensors


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    """A safetensors file starts with the length of its JSON header, eight bytes, then the JSON."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _load_safetensors(path: Path, head: bytes) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = int.from_bytes(head[:8], "little")
    if header > _MOST_HEADER:
        raise DamagedError(
            f"its header has {header:,} bytes, and that of no model has more than {_MOST_HEADER:,}",
            remedy=_COPY_AGAIN,
            path=path,
        )

    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise DamagedError(
            f"not a sound safetensors file ({first_line(error)[:120]})",
            remedy=_COPY_AGAIN,
            path=path,
        ) from error
