"""Recognise the format of a file by its content, and open it as a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from clipcheck.checkpoints import directories, download, registry, towers
from clipcheck.checkpoints.architecture import ARCHITECTURES
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
from clipcheck.checkpoints.saved import WEIGHTS, Saved, first_bytes, is_archive, merged, mode, read
from clipcheck.checkpoints.told import Told, require_dimensions, telling
from clipcheck.checkpoints.training import read_record
from clipcheck.checkpoints.unpickle import ITEM_SIZES, TensorRecord, read_tensors
from clipcheck.errors import ArchitectureError, DamagedError, UnknownFormatError, UsageError

if TYPE_CHECKING:
    import torch


ANY_MODEL = (
    "a TorchScript archive, a state dict saved by torch.save, a safetensors file, or a program "
    "(ONNX, torch.export, AOTInductor)"
)
"""Description of all files that a check can judge."""

_MOST_REPEATED = 64 << 20
"""Bytes of weights that may be read beyond the size of the file."""

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
    if stat.S_ISDIR(mode(path)):
        return _open_directory(directories.read(path), _Key(key, strict), told)
    file = read(path, accepted)
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
    if not first_bytes(path).startswith(ZIP_MAGIC):
        return False
    records = Records(MappedFile(path))
    if not is_archive(records):
        return False
    return is_frozen(records) or not has_both_towers(list(read_tensors(records)))


def archive_keys(path: Path) -> list[str]:
    """The keys of a TorchScript archive; none of one that is frozen, or of another file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if not path.is_file() or not first_bytes(path).startswith(ZIP_MAGIC):
        return []
    file = read(path)
    if file.format is not Format.ARCHIVE or file.records is None or is_frozen(file.records):
        return []
    return file.keys()


class _Key(NamedTuple):
    """Name of the model, and whether a model must have it."""

    name: str | None
    strict: bool


def _open_directory(directory: directories.Directory, key: _Key, told: Told | None) -> Checkpoint:
    files = {path: read(path) for path in directory.weights}
    for path, file in files.items():
        if file.format is Format.ARCHIVE:
            raise UnknownFormatError(
                "expected weights alone, found a TorchScript archive",
                remedy="Give the path of the archive itself.",
                path=path,
            )
    directory.require_indexed({path: file.keys() for path, file in files.items()})
    whole = merged(list(files.values()))
    size = sum(path.stat().st_size for path in files)
    if told is None:
        source = f"its {directory.config_path.name}"
        told = Told(directory.model, source, note=directory.note)
    checkpoint = _checkpoint(directory.path, directory.format, whole, key, size, told)
    parts = tuple(file.records for file in files.values() if file.records is not None)
    return dataclasses.replace(checkpoint, files=directory.files, parts=parts, records=None)


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
    path: Path, form: Format, file: Saved, key: _Key, size: int, told: Told | None
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
    file: Saved,
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
    file: Saved, key: _Key, path: Path, *, usual: bool
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
