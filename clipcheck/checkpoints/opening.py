"""Open the subject of a run, a checkpoint or a program, and its reference."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from clipcheck.checkpoints import directories, kinds, onnx_data, openvino_data, towers
from clipcheck.checkpoints.artefacts import kind_of
from clipcheck.checkpoints.checkpoint import (
    PROGRAM_FORMATS,
    Checkpoint,
    Format,
    Program,
    bytes_of,
    stamp_of,
)
from clipcheck.checkpoints.dimensions import ASKED
from clipcheck.checkpoints.finding import ASKED_KEY
from clipcheck.checkpoints.formats import (
    ANY_MODEL,
    archive_keys,
    is_opaque,
    locate,
    open_checkpoint,
    require_found,
)
from clipcheck.checkpoints.library import LibraryArchitecture, own_of_transformers
from clipcheck.checkpoints.naming import has_both_towers, is_own
from clipcheck.checkpoints.saved import WEIGHTS
from clipcheck.checkpoints.told import Told, candidates, named
from clipcheck.errors import ArchitectureError, ClipcheckError, UsageError

_BESIDE = (".safetensors", ".pt", ".pth", ".bin")
"""Suffixes of a checkpoint beside a program, in the order of the search."""


def open_pair(
    name: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    download_root: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    architecture: str | os.PathLike[str] | None = None,
) -> tuple[Checkpoint | Program, Checkpoint | None]:
    """Open the subject and its reference, without running code of either.

    Both are the same model: if one file tells the activation, heads and epsilon, they are used for
    the other file too.

    Args:
        key: which model to read from a file with several, as for `open_checkpoint`. One of the two
            files must have it.
        architecture: of both files, as for `clipcheck.checkpoints.told.named`.

    Raises:
        UsageError: neither file has a model under ``key``.
        ArchitectureError: activation, heads and epsilon are not known.
    """
    told = None if architecture is None else named(os.fspath(architecture))
    alone = reference is None
    library = _told_of_archive(Path(name), reference)
    tells, opaque = told or library, not alone and library is None
    subject = open_subject(name, download_root, key=key, strict=alone, told=tells, opaque=opaque)
    if isinstance(subject, Checkpoint) and subject.format is Format.ARCHIVE:
        told = tells
        if told is not None and told.own == subject.model:
            told = replace(told, model=told.own)
    other = open_reference(subject, reference, download_root, key=key, told=told)
    opened = [each for each in (subject, other) if isinstance(each, Checkpoint)]
    if key is not None and not any(each.origin.has_name(key) for each in opened):
        raise UsageError(
            f"expected a CLIP model under {key!r} in one of the files, found "
            + " and ".join(f"{each.origin.name!r} in {each.path}" for each in opened),
            remedy=f"Give {ASKED_KEY} the name of a model in the files, or leave it out.",
        )
    return _computing_alike(subject, other)


def _told_of_archive(path: Path, reference: str | os.PathLike[str] | None) -> Told | None:
    """Return the library architecture of an archive from the folder of its reference, or None.

    Archives have no configuration of their own.
    """
    folder = reference is not None and os.path.isdir(reference)  # noqa: PTH112
    if reference is None or not folder or not os.path.isfile(path):  # noqa: PTH113
        return None
    keys = [] if kind_of(path) is not None else archive_keys(path)
    if not keys:
        return None
    found = directories.read(Path(reference))
    own = own_of_transformers(found.config) if is_own(keys) else None
    if own is None and not isinstance(found.model, LibraryArchitecture):
        return None
    kind = kinds.kind_of(found.config)
    if not has_both_towers(keys) and not (kind and kind.tower):
        return None  # the archive has one tower, the folder's model has two
    return Told(found.model, f"its {found.config_path.name}, of {found.path}", own=own)


def _computing_alike(
    subject: Checkpoint | Program, other: Checkpoint | None
) -> tuple[Checkpoint | Program, Checkpoint | None]:
    """Return both; if only one tells the activation, heads and epsilon, the other gets them too."""
    if other is None or isinstance(subject, Program):
        require_told(weights_of(subject, other))
    elif subject.told and not other.told:
        other = _computing_as(other, subject)
    elif other.told and not subject.told:
        subject = _computing_as(subject, other)
    elif Format.ARCHIVE not in (subject.format, other.format):
        require_told(subject)
    return subject, other


def _computing_as(one: Checkpoint, other: Checkpoint) -> Checkpoint:
    architecture = one.architecture.computing_as(other.architecture)
    return replace(one, model=architecture, told=f"{other.told}, of {other.path}")


def require_told(checkpoint: Checkpoint) -> None:
    """Raise if a model's activation, heads and epsilon are not known and its file has no code.

    Raises:
        ArchitectureError: the message lists the known models of these dimensions.
    """
    if checkpoint.told or checkpoint.format is Format.ARCHIVE:
        return
    what = checkpoint.untold or "no configuration beside it, no record in it"
    raise undecided(
        checkpoint,
        "the model's activation, heads and epsilon are not known, since weights do not determine "
        f"them: {what}",
    )


def undecided(checkpoint: Checkpoint, problem: str) -> ArchitectureError:
    """Return an error that lists the known models of these dimensions."""
    found = candidates(checkpoint.architecture)
    known = "; ".join(f"{', '.join(names)} ({function})" for function, names in found)
    could_be = (
        f"Known models of these dimensions: {known}"
        if known
        else "No known model has these dimensions"
    )
    return ArchitectureError(
        f"{problem}. {could_be}",
        remedy=f"Give the architecture with {ASKED}: {'one of these names, or ' if known else ''}"
        "the open_clip_config.json or config.json (transformers) of its training.",
        path=checkpoint.path,
    )


def open_subject(
    name: str | os.PathLike[str],
    download_root: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    strict: bool = True,
    told: Told | None = None,
    opaque: bool = False,
    accepted: str = ANY_MODEL,
) -> Checkpoint | Program:
    """Open the subject, without running any of its code.

    Args:
        opaque: whether to open an archive as a program if it has only a part of a model, or if its
            weights have no names.
        accepted: description of the files that the caller accepts, for errors.
    """
    pair = towers.split(name)
    if pair is not None:
        return _pair(Path(name), pair)
    path = locate(name, download_root)
    pair = _pair_in(path)
    if pair is not None:
        return _pair(path, pair)
    # Not `Path.is_file`, which raises for an unreadable folder: opening the file reports that.
    kind = kind_of(path) if os.path.isfile(path) else None  # noqa: PTH113
    if kind is None and opaque and os.path.isfile(path) and is_opaque(path):  # noqa: PTH113
        kind = Format.ARCHIVE
    if kind is not None:
        return _program(path, kind)
    return open_checkpoint(
        name, download_root, key=key, strict=strict, told=told, accepted=accepted
    )


def format_of_program(path: Path) -> Format | None:
    """Return the format of a program, or of the programs of both towers; None for anything else.

    Args:
        path: of a file or folder, or ``image=FILE,text=FILE``.

    Raises:
        ClipcheckError: as `open_subject`.
    """
    file, *_ = towers.split(path) or _pair_in(path) or [path]
    return kind_of(file) if os.path.isfile(file) else None  # noqa: PTH113 - as in `open_subject`


def _pair_in(path: Path) -> tuple[Path, Path] | None:
    """Return the programs of both towers in a folder without weights, or None."""
    # Not `Path.is_dir`, which raises for an unreadable folder: opening it reports that.
    if os.path.isdir(path) and not directories.has_weights(path):  # noqa: PTH112
        return towers.find(path)
    return None


def _pair(path: Path, files: tuple[Path, Path]) -> Program:
    """Open the programs of both towers as one."""
    kinds = []
    for tower, file in zip(towers.TOWERS, files, strict=True):
        require_found(file)
        kinds.append(kind_of(file) or (Format.ARCHIVE if is_opaque(file) else None))
        if kinds[-1] is None:
            raise UsageError(
                f"expected a program of the {tower} tower, found a file without one",
                remedy=f"Give a program: {', '.join(PROGRAM_FORMATS)}, or an archive of the tower.",
                path=file,
            )
    image, text = kinds
    if image is not text or image is None:
        raise UsageError(
            f"expected two programs of one format, found {image} and {text}",
            remedy="Export both towers to the same format, or judge each alone.",
            path=path,
        )
    both = tuple(_program(file, image) for file in files)
    return Program(path, image, towers=both)


def _program(path: Path, kind: Format) -> Program:
    # A .pt2 file of torch contains all of its weights.
    data: tuple[Path, ...] = ()
    if kind is Format.ONNX:
        data = onnx_data.data_files(path)
    elif kind is Format.OPENVINO:
        data = (openvino_data.weights_of(path),)
    return Program(path, kind, data, stamps=tuple(map(stamp_of, (path, *data))))


def open_reference(
    subject: Checkpoint | Program,
    name: str | os.PathLike[str] | None,
    download_root: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    told: Told | None = None,
) -> Checkpoint | None:
    """Open the reference of the subject, or return None if the subject is its own reference.

    Args:
        name: of the reference. By default, a checkpoint is its own reference, and the reference of
            a program is the file beside it with the same name and another suffix.

    Raises:
        UsageError: a program has no reference, or the reference is a program.
    """
    if name is None and isinstance(subject, Checkpoint):
        return None
    if name is None and isinstance(subject, Program) and subject.towers:
        raise UsageError(
            f"{subject.path}: expected the checkpoint that these programs were made from",
            remedy="Name it with --reference CHECKPOINT.",
        )
    where = name or beside(subject.path)
    found = open_subject(where, download_root, key=key, strict=False, told=told, accepted=WEIGHTS)
    if isinstance(found, Program):
        raise UsageError(
            f"expected a reference with weights, found a program ({found.format})",
            remedy="Give the checkpoint that it was made from, with --reference.",
        )
    return found


def size_of(path: Path) -> int:
    """Return the bytes of all files of a checkpoint or program; 0 if the path does not exist.

    If the file cannot be used, its own size is returned.
    """
    pair = towers.split(path)
    if pair is not None:
        return sum(map(size_of, pair))
    try:
        if path.is_dir():
            return bytes_of(directories.read(path).files)
        kind = kind_of(path)
        return path.stat().st_size if kind is None else _program(path, kind).size
    except (OSError, ValueError, ClipcheckError):
        return path.stat().st_size if os.path.exists(path) else 0  # noqa: PTH110


def weights_of(subject: Checkpoint | Program, reference: Checkpoint | None) -> Checkpoint:
    """Return the checkpoint with the weights of the subject: itself, or the reference."""
    if isinstance(subject, Checkpoint):
        return subject
    if reference is None:
        raise ValueError("a program has no weights of its own")
    return reference


def beside(path: Path) -> Path:
    """Return a program's default reference: the file beside it with the same name and another
    suffix.

    Raises:
        UsageError: there is no such file.
    """
    own = {".bin"} if openvino_data.is_openvino(path) else set()
    endings = [ending for ending in _BESIDE if ending not in own]
    for ending in endings:
        other = path.with_suffix(ending)
        if other != path and other.is_file():
            return other
    names = ", ".join(path.with_suffix(ending).name for ending in endings)
    raise UsageError(
        f"{path}: expected the checkpoint that this program was made from beside it, found none of "
        f"{names}",
        remedy="Name it with --reference CHECKPOINT.",
    )
