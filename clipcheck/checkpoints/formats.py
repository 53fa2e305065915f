"""Recognise the format of a file by its content, and read its tensors through a memory map.

No code of the file runs: pickles go through restricted unpicklers, and safetensors has no code.
"""

from __future__ import annotations

import dataclasses
import functools
import mmap
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from clipcheck.checkpoints import directories, download, registry, towers
from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.checkpoints.artefacts import kind_of
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.dimensions import dimensions_of, infer, listed
from clipcheck.checkpoints.finding import Origin, find_model
from clipcheck.checkpoints.keymaps import from_layout, layout_of, spelled
from clipcheck.checkpoints.keys import Spec, specs
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.naming import (
    Naming,
    has_both_towers,
    is_causal_mask,
    is_frozen,
    is_own,
    read_names,
    require_not_frozen,
)
from clipcheck.checkpoints.records import ZIP_MAGIC, MappedFile, Records
from clipcheck.checkpoints.state_dicts import LEGACY_MAGIC, LegacyFile, read_pickle
from clipcheck.checkpoints.told import (
    EXTRA,
    METADATA,
    MOST_RECORD,
    Told,
    require_dimensions,
    telling,
)
from clipcheck.checkpoints.training import read_record
from clipcheck.checkpoints.unpickle import ITEM_SIZES, META, TensorRecord, read_tensors
from clipcheck.errors import (
    ArchitectureError,
    DamagedError,
    UnknownFormatError,
    UsageError,
    first_line,
)

if TYPE_CHECKING:
    import torch

WEIGHTS = "a TorchScript archive, a state dict saved by torch.save, or a safetensors file"
"""Description of all files with named weights."""

ANY_MODEL = (
    "a TorchScript archive, a state dict saved by torch.save, a safetensors file, or a program "
    "(ONNX, torch.export, AOTInductor)"
)
"""Description of all files that a check can judge."""

_MOST_REPEATED = 64 << 20
"""Bytes of weights that may be read beyond the size of the file."""

_MOST_HEADER = 16 << 20
"""Most bytes of a safetensors file's header. A weight needs about 100."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_WHOLE_NUMBERS = frozenset(ITEM_SIZES).difference(_FLOATS)


def locate(name: str | os.PathLike[str], download_root: str | os.PathLike[str] | None) -> Path:
    """Return the path itself, or the file of a released model, downloaded if it is not cached.

    Raises:
        UnknownModelError: ``name`` is neither a released name nor an existing path.
        DownloadError: the released file could not be fetched.
    """
    require_found(name)
    if str(name) in registry.RELEASED:
        return download.fetch(str(name), download_root)
    return Path(name)


def require_found(name: str | os.PathLike[str]) -> None:
    """Raise if a name is neither a released one nor an existing path.

    Raises:
        UnknownModelError: it is neither.
    """
    for each in towers.split(name) or (name,):
        if str(each) not in registry.RELEASED and not _is_there(Path(each)):
            raise registry.not_found(str(each))


def _is_there(path: Path) -> bool:
    """Whether ``path`` exists, or may exist: reading it then gives the reason of an error."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def open_checkpoint(
    name: str | os.PathLike[str],
    download_root: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    strict: bool = True,
    told: Told | None = None,
    accepted: str = WEIGHTS,
) -> Checkpoint:
    """Read a checkpoint by its released name, or by the path of a file or a folder.

    The keys may be those of the reference implementation, of open_clip or of transformers (see
    `clipcheck.checkpoints.keymaps`). How the model computes is told by the user, by the folder's
    configuration, by a record in the file or by a configuration beside it. Where nothing tells,
    `Checkpoint.told` is empty, and the architecture computes as the released models do.

    Args:
        name: a name from `available_models`, or a path.
        download_root: folder for released files; default: ``$CLIPCHECK_CACHE``, else
            ``~/.cache/clip``.
        key: name of the model in a file with several, such as a training checkpoint with
            ``model`` and ``model_ema``; parts are joined by dots, as ``state_dict.teacher``.
        strict: whether a model must have this name; else a single model is used, too.
        told: its architecture, if known.
        accepted: description of the files that the caller accepts, for errors.

    Raises:
        UnknownModelError: ``name`` is neither.
        UsageError: there is no model under ``key``, and there has to be one.
        DownloadError: a released file could not be fetched.
        CheckpointError: the file is no CLIP checkpoint; the subclass tells why.
    """
    path = locate(name, download_root)
    if stat.S_ISDIR(_mode(path)):
        return _open_directory(directories.read(path), _Key(key, strict), told)
    file = _read(path, accepted)
    checkpoint = _checkpoint(path, file.format, file, _Key(key, strict), path.stat().st_size, told)
    if not checkpoint.told and checkpoint.model == ARCHITECTURES.get(str(name)):
        return dataclasses.replace(checkpoint, told=f"the released model {name}")
    return checkpoint


def is_opaque(path: Path) -> bool:
    """Whether a file is an archive whose weights are not those of a whole model: it is frozen, or
    of one tower.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not _first_bytes(path).startswith(ZIP_MAGIC):
        return False
    records = Records(MappedFile(path))
    if not _is_archive(records):
        return False
    return is_frozen(records) or not has_both_towers(list(read_tensors(records)))


def _is_archive(records: Records) -> bool:
    return "constants.pkl" in records or bool(records.names("code/"))


def archive_keys(path: Path) -> list[str]:
    """The keys of a TorchScript archive; none of one that is frozen, or of another file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if not path.is_file() or not _first_bytes(path).startswith(ZIP_MAGIC):
        return []
    file = _read(path)
    if file.format is not Format.ARCHIVE or file.records is None or is_frozen(file.records):
        return []
    return file.keys()


class _Key(NamedTuple):
    """Name of the model, and whether a model must have it."""

    name: str | None
    strict: bool


def _open_directory(directory: directories.Directory, key: _Key, told: Told | None) -> Checkpoint:
    files = {path: _read(path) for path in directory.weights}
    for path, file in files.items():
        if file.format is Format.ARCHIVE:
            raise UnknownFormatError(
                "expected weights alone, found a TorchScript archive",
                remedy="Give the path of the archive itself.",
                path=path,
            )
    directory.require_indexed({path: file.keys() for path, file in files.items()})
    whole = _merged(list(files.values()))
    size = sum(path.stat().st_size for path in files)
    if told is None:
        source = f"its {directory.config_path.name}"
        told = Told(directory.model, source, note=directory.note)
    checkpoint = _checkpoint(directory.path, directory.format, whole, key, size, told)
    parts = tuple(file.records for file in files.values() if file.records is not None)
    return dataclasses.replace(checkpoint, files=directory.files, parts=parts, records=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    """The contents of a file.

    Attributes:
        format: of the file.
        saved: content; except for a state dict, tensors by name.
        kind: class of its tensors.
        load: function that turns these into torch's tensors.
        records: its zip records, if it is a zip file.
        computes: clipcheck's own record of the architecture, or None.
    """

    format: Format
    saved: object
    kind: type[Any]
    load: Callable[[Any], torch.Tensor]
    records: Records | None = None
    computes: str | None = None

    def keys(self) -> list[str]:
        """Names at the top level."""
        found = self.saved if isinstance(self.saved, Mapping) else {}
        return [key for key in found if isinstance(key, str)]


def _merged(files: list[_File]) -> _File:
    """Combine the tensors of all files as one file."""
    if len(files) == 1:
        return files[0]
    import torch

    tensors = {
        key: file.load(value)
        for file in files
        if isinstance(file.saved, Mapping)
        for key, value in file.saved.items()
        if isinstance(value, file.kind)
    }
    return _File(format=files[0].format, saved=tensors, kind=torch.Tensor, load=_as_it_is)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _read(path: Path, accepted: str = WEIGHTS) -> _File:
    import torch

    head = _first_bytes(path, accepted)
    program = kind_of(path)
    if program is not None:
        raise UnknownFormatError(
            f"expected {WEIGHTS}; found a program ({program})",
            remedy="Give the checkpoint that it was made from.",
            path=path,
        )
    if head.startswith(ZIP_MAGIC):
        return _read_zip(path)
    if head.startswith(LEGACY_MAGIC):
        file = LegacyFile(path)
        load = functools.partial(_load_legacy, file)
        return _File(format=Format.STATE_DICT, saved=file.saved, kind=TensorRecord, load=load)
    if _looks_like_safetensors(head, path.stat().st_size):
        tensors, computes = _load_safetensors(path, head)
        return _File(
            format=Format.SAFETENSORS,
            saved=tensors,
            kind=torch.Tensor,
            load=_as_it_is,
            computes=computes,
        )
    found, remedy = _describe(head)
    raise UnknownFormatError(f"expected {accepted}; found {found}", remedy=remedy, path=path)


def _require_stored(tensors: Mapping[str, torch.Tensor], size: int, path: Path) -> None:
    """Raise if the weights would need far more bytes than the file has.

    A stride of 0 makes a tensor of any size of a single number, and any number of tensors may
    share their numbers. A whole model of a few kilobytes would fill all memory when it is cast.
    """
    claimed = sum(t.numel() * t.itemsize for t in tensors.values() if not t.is_meta)
    if claimed > max(2 * size, _MOST_REPEATED):
        raise DamagedError(
            f"its tensors would be {claimed:,} bytes, and the file has {size:,}: they repeat what "
            "they hold",
            remedy="Save a copy of each tensor (tensor.contiguous().clone()), if the file is "
            "yours; if it is not, do not use it.",
            path=path,
        )


def _checkpoint(
    path: Path, form: Format, file: _File, key: _Key, size: int, told: Told | None
) -> Checkpoint:
    """Make a checkpoint of the model in a file."""
    if told is not None and told.own is not None and form is Format.ARCHIVE:
        told = dataclasses.replace(told, model=told.own) if is_own(file.keys()) else told
    library = told is not None and isinstance(told.model, LibraryArchitecture)
    tensors, origin = _model(file, key, path, usual=not library)
    _require_stored(tensors, size, path)
    if told is not None and library:
        return _of_library(path, form, file, tensors, origin, told)
    if form is Format.ARCHIVE and file.records is not None:
        require_not_frozen(file.records, path)
        tensors, naming = read_names(tensors, path)
    else:
        # From a scripted or traced model, or open_clip's first versions.
        tensors = {key: t for key, t in tensors.items() if not is_causal_mask(t)}
        naming = Naming(layout=layout_of(tensors))
        tensors = from_layout(tensors, naming.layout, path)
    name = functools.partial(spelled, layout=naming.layout)
    record = read_record(file.saved) if file.kind is TensorRecord else {}
    dimensions, untold = dimensions_of(tensors, path, name), ""
    if told is not None:
        require_dimensions(told, dimensions, path)
    else:
        archive = form is Format.ARCHIVE
        told, untold = telling(path, dimensions, file.computes, record, archive=archive)
    architecture = told.architecture if told is not None else infer(tensors, path, name)
    found = [
        f"{name(key)} ({kind})"
        for key, spec in specs(architecture)
        if key in tensors and (kind := _unusable(tensors[key], spec))
    ]
    _require_usable(found, path)
    return Checkpoint(
        path=path,
        format=form,
        model=architecture,
        tensors=tensors,
        records=file.records,
        record=record,
        origin=origin,
        naming=naming,
        told="" if told is None else str(told),
        untold=untold,
        asked="" if told is None else told.argument,
    )


def _of_library(
    path: Path,
    form: Format,
    file: _File,
    tensors: dict[str, torch.Tensor],
    origin: Origin,
    told: Told,
) -> Checkpoint:
    """Make a checkpoint of a library's model. Building it checks later whether the weights fit."""
    if form is Format.ARCHIVE and file.records is not None:
        require_not_frozen(file.records, path)
    _require_usable(
        [f"{key} ({kind})" for key, each in tensors.items() if (kind := _unusable_there(each))],
        path,
    )
    record = read_record(file.saved) if file.kind is TensorRecord else {}
    return Checkpoint(
        path=path,
        format=form,
        model=told.model,
        tensors=tensors,
        records=file.records,
        record=record,
        origin=origin,
        told=str(told),
    )


def _model(
    file: _File, key: _Key, path: Path, *, usual: bool
) -> tuple[dict[str, torch.Tensor], Origin]:
    """Return the tensors of the model, and its place in the file."""
    if file.format is not Format.ARCHIVE:
        model = find_model(file.saved, file.kind, key.name, path, strict=key.strict, usual=usual)
        return {name: file.load(each) for name, each in model.weights.items()}, model.origin
    if key.name is not None and key.strict:
        raise UsageError(
            f"{path}: expected a file of several models for --key, found a TorchScript archive, "
            "which is one",
            remedy="Leave --key out.",
        )
    return cast("dict[str, torch.Tensor]", file.saved), Origin()


def _require_usable(unusable: list[str], path: Path) -> None:
    if unusable:
        raise ArchitectureError(
            f"expected dense weights of {', '.join(_FLOATS[:-1])} or {_FLOATS[-1]} and whole "
            f"numbers in the buffers, found {listed('', unusable)}",
            remedy="Save the model's state dict before it is quantized.",
            path=path,
        )


def _unusable_there(tensor: torch.Tensor) -> str:
    """Describe ``tensor`` if no supported model can have it, else return an empty string."""
    layout, dtype = (str(kind).removeprefix("torch.") for kind in (tensor.layout, tensor.dtype))
    if layout != "strided" or tensor.is_quantized:
        return f"{layout} {dtype}"
    if tensor.is_meta:
        return f"{dtype} without values"
    return "" if dtype in (*_FLOATS, *_WHOLE_NUMBERS, "bool") else dtype


def _unusable(tensor: torch.Tensor, spec: Spec) -> str:
    """Describe ``tensor`` if a CLIP model cannot have it there, else return an empty string."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if (problem := _unusable_there(tensor)) and problem != dtype:
        return problem
    if dtype in _FLOATS and (spec.kind != "buffer" or float(tensor).is_integer()):
        return ""
    return "" if spec.kind == "buffer" and dtype in _WHOLE_NUMBERS else dtype


def _mode(path: Path) -> int:
    """Return the file mode of the path, as `stat` has it."""
    try:
        return path.stat().st_mode
    except OSError as error:
        raise directories.unreadable(path, error) from error


def _first_bytes(path: Path, accepted: str = WEIGHTS) -> bytes:
    if not stat.S_ISREG(_mode(path)):
        # Opening a pipe would block.
        raise UnknownFormatError(
            f"expected {accepted}; found a device",
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
            f"expected {accepted}; the file is empty",
            remedy="Copy or download the file again, or write it anew.",
            path=path,
        )
    return head


def _describe(head: bytes) -> tuple[str, str]:
    """Describe a file that is no checkpoint, and return the remedy."""
    if head.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer, which stands for a file that was not fetched",
            "Fetch the file: git lfs pull.",
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return (
            "an HTML page, as servers send in place of a file that they do not give out",
            "Download the file again; the page tells what the server asks for, as a login.",
        )
    remedy = "Give the path of a checkpoint."
    if all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head):
        return f"text that begins with {head[:24].decode('ascii')!r}", remedy
    return f"bytes that begin with {head[:8].hex(' ')}", remedy


# --------------------------------------------------------------------------- zip files


def _read_zip(path: Path) -> _File:
    import torch

    records = Records(MappedFile(path))
    # Compare the checksums of code, pickles and constants now: they are small, and determine how
    # the rest is read and run. torch compares none. `Checkpoint.verify` compares the weights'.
    records.verify(name for name in records.names() if not name.startswith("data/"))
    if _is_archive(records):
        tensors = map_tensors(records, read_tensors(records))
        computes = None
        if EXTRA in records and records[EXTRA].size <= MOST_RECORD:
            computes = records.read(EXTRA).decode(errors="replace")
        return _File(
            format=Format.ARCHIVE,
            saved=tensors,
            kind=torch.Tensor,
            load=_as_it_is,
            records=records,
            computes=computes,
        )
    saved = read_pickle(records.read("data.pkl"), path)
    _require_little_endian(records)
    load = functools.partial(_map_tensor, records)
    return _File(
        format=Format.STATE_DICT, saved=saved, kind=TensorRecord, load=load, records=records
    )


def map_tensors(records: Records, found: Mapping[str, TensorRecord]) -> dict[str, torch.Tensor]:
    """Return tensors over the memory map of the file; they are loaded on first access.

    Raises:
        DamagedError: a record is shorter than its tensor needs.
    """
    _require_little_endian(records)
    return {key: _map_tensor(records, tensor) for key, tensor in found.items()}


def _require_little_endian(records: Records) -> None:
    if "byteorder" in records and records.read("byteorder") != b"little":
        raise DamagedError(
            "its weights are big-endian, or its byte order was altered",
            remedy="Write the file again on a little-endian machine.",
            path=records.file.path,
        )


def _map_tensor(records: Records, tensor: TensorRecord) -> torch.Tensor:
    if tensor.storage.location == META:
        return _without_values(tensor)
    record = records[f"data/{tensor.storage.key}"]
    if record.size < tensor.storage.length * _dtype(tensor).itemsize:
        raise DamagedError(
            f"the record {record.name!r} has {record.size} bytes, fewer than its tensor needs",
            path=records.file.path,
        )
    return _over(records.file.buffer, tensor, record.offset)


def _load_legacy(file: LegacyFile, tensor: TensorRecord) -> torch.Tensor:
    if tensor.storage.location == META:
        return _without_values(tensor)
    return _over(file.read(tensor.storage), tensor)


def _dtype(tensor: TensorRecord) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, tensor.storage.dtype)
    return found


def _over(buffer: bytearray | mmap.mmap, tensor: TensorRecord, start: int = 0) -> torch.Tensor:
    """Return a tensor over its storage, which starts at ``start`` of a buffer."""
    import torch

    dtype, length = _dtype(tensor), tensor.storage.length
    if length == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    flat = torch.frombuffer(buffer, dtype=dtype, count=length, offset=start)
    return flat.as_strided(tensor.shape, tensor.stride, tensor.offset)


def _without_values(tensor: TensorRecord) -> torch.Tensor:
    import torch

    return torch.empty(tensor.shape, dtype=_dtype(tensor), device=META)


# --------------------------------------------------------------------------- safetensors


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether a file starts like safetensors: the length of a JSON header in 8 bytes, then JSON.

    A file that is shorter than its header was cut off.
    """
    whole = int.from_bytes(head[:8], "little") <= size - 8
    return head[8:10] == b'{"' or (head[8:9] == b"{" and whole)


def _load_safetensors(path: Path, head: bytes) -> tuple[dict[str, torch.Tensor], str | None]:
    """Return the weights, and clipcheck's own record of the architecture, or None."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    header = int.from_bytes(head[:8], "little")
    if header > _MOST_HEADER:
        raise DamagedError(
            f"its header has {header:,} bytes, and that of no model has more than {_MOST_HEADER:,}",
            path=path,
        )
    size = path.stat().st_size
    if header > size - 8:
        raise DamagedError(
            f"its header has {header:,} bytes, and the file {size:,}: it was cut off", path=path
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        _require_model(metadata, path)
        return load_file(path), metadata.get(METADATA)
    except (SafetensorError, ValueError, OSError) as error:
        raise DamagedError(
            f"not a valid safetensors file ({first_line(error)[:120]})", path=path
        ) from error


_REMEDIES = {
    '{"kind": "pin",': (
        "a pin",
        "Judge a checkpoint or program by it: clipcheck check FILE --pinned PIN.",
    ),
    '{"kind": "outputs",': ("outputs of a check", "Judge them again: clipcheck rejudge FOLDER."),
}
"""Names and remedies of clipcheck's own safetensors files, by how their header begins."""


def _require_model(metadata: Mapping[str, str], path: Path) -> None:
    for begin, (what, remedy) in _REMEDIES.items():
        if metadata.get("clipcheck", "").startswith(begin):
            raise UnknownFormatError(
                f"expected a checkpoint, found {what} that clipcheck wrote",
                remedy=remedy,
                path=path,
            )
