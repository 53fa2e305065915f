"""Open whatever can be judged: a checkpoint, or a program whose checkpoint is another file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from clipcheck.checkpoints import directories, kinds, towers
from clipcheck.checkpoints.architecture import ASKED
from clipcheck.checkpoints.artefacts import kind_of
from clipcheck.checkpoints.checkpoint import (
    PROGRAM_FORMATS,
    Checkpoint,
    Format,
    Program,
    bytes_of,
    stamp_of,
)
from clipcheck.checkpoints.finding import ASKED_KEY
from clipcheck.checkpoints.formats import (
    archive_keys,
    is_opaque,
    locate,
    open_checkpoint,
    require_found,
)
from clipcheck.checkpoints.library import LibraryArchitecture, own_of_transformers
from clipcheck.checkpoints.naming import has_both_towers, is_own
from clipcheck.checkpoints.onnx_data import data_files
from clipcheck.checkpoints.told import Told, candidates, named
from clipcheck.errors import ArchitectureError, ClipcheckError, UsageError

_BESIDE = (".safetensors", ".pt", ".pth", ".bin")
"""How the checkpoint beside a program may end, in the order in which it is looked for."""


def open_pair(
    name: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
    download_root: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    architecture: str | os.PathLike[str] | None = None,
) -> tuple[Checkpoint | Program, Checkpoint | None]:
    """Open what is to be judged and what it is compared with. Nothing of either is run.

    What tells how one of them computes tells it of the other too: they are one model.

    Args:
        key: which model to read of a file that holds several, as for `open_checkpoint`. One of the
            two files has to have it.
        architecture: the one of both, as for `clipcheck.checkpoints.told.named`.

    Raises:
        UsageError: neither has a model under ``key``.
        ArchitectureError: nothing tells how the model computes.
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
            remedy=f"Give {ASKED_KEY} the name of one that is there, or leave it out.",
        )
    return _computing_alike(subject, other)


def _told_of_archive(path: Path, reference: str | os.PathLike[str] | None) -> Told | None:
    """Read in the folder that an archive is compared with what its library computes it as: archives
    have no configuration."""
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
        return None  # one tower of two
    return Told(found.model, f"its {found.config_path.name}, of {found.path}", own=own)


def _computing_alike(
    subject: Checkpoint | Program, other: Checkpoint | None
) -> tuple[Checkpoint | Program, Checkpoint | None]:
    """Both, with what tells how one computes told of the other."""
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
    """See that something tells how a model computes, or that its file has code that does it.

    Raises:
        ArchitectureError: nothing does; the message lists what the weights could be.
    """
    if checkpoint.told or checkpoint.format is Format.ARCHIVE:
        return
    what = checkpoint.untold or "no configuration beside it, no record in it"
    raise undecided(
        checkpoint,
        "these weights do not tell how the model computes (activation, heads, epsilon), and "
        f"nothing else does: {what}",
    )


def undecided(checkpoint: Checkpoint, problem: str) -> ArchitectureError:
    """An error that lists what the weights could be."""
    found = candidates(checkpoint.architecture)
    known = "; ".join(f"{', '.join(names)} ({function})" for function, names in found)
    could_be = f"Of these dimensions are: {known}" if known else "No known model is of these sizes"
    return ArchitectureError(
        f"{problem}. {could_be}",
        remedy=f"Say which it is with {ASKED}: {'one of these names, or ' if known else ''}the "
        "open_clip_config.json or config.json (transformers) that it was trained with.",
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
) -> Checkpoint | Program:
    """Open what is to be judged. Nothing of it is run.

    Args:
        opaque: whether an archive that is not of a whole model, or whose weights have no names, is
            taken as a program.
    """
    pair = towers.split(name)
    if pair is not None:
        return _pair(Path(name), pair)
    path = locate(name, download_root)
    if os.path.isdir(path) and not directories.has_weights(path):  # noqa: PTH112 - as below
        pair = towers.find(path)
        if pair is not None:
            return _pair(path, pair)
    # Not `Path.is_file`, which raises where the folder may not be read: opening it tells that.
    kind = kind_of(path) if os.path.isfile(path) else None  # noqa: PTH113
    if kind is None and opaque and os.path.isfile(path) and is_opaque(path):  # noqa: PTH113
        kind = Format.ARCHIVE
    if kind is not None:
        return _program(path, kind)
    return open_checkpoint(name, download_root, key=key, strict=strict, told=told)


def _pair(path: Path, files: tuple[Path, Path]) -> Program:
    """The programs of both towers."""
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
            remedy="Export both towers alike, or judge each alone.",
            path=path,
        )
    both = tuple(_program(file, image) for file in files)
    return Program(path, image, towers=both)


def _program(path: Path, kind: Format) -> Program:
    # What torch writes as pt2 has all of its weights inside.
    data = data_files(path) if kind is Format.ONNX else ()
    return Program(path, kind, data, stamps=tuple(map(stamp_of, (path, *data))))


def open_reference(
    subject: Checkpoint | Program,
    name: str | os.PathLike[str] | None,
    download_root: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    told: Told | None = None,
) -> Checkpoint | None:
    """Open the file that the subject is compared with; None where the subject is its own reference.

    Args:
        name: the one that was asked for. Without, a checkpoint is its own reference, and that of a
            program is the file beside it that has its name but for the ending.

    Raises:
        UsageError: a program has no reference, or the reference is a program.
    """
    if name is None and isinstance(subject, Checkpoint):
        return None
    if name is None and isinstance(subject, Program) and subject.towers:
        raise UsageError(
            f"{subject.path}: expected the checkpoint that these programs were made of",
            remedy="Name it with --reference CHECKPOINT.",
        )
    where = name or beside(subject.path)
    found = open_subject(where, download_root, key=key, strict=False, told=told)
    if isinstance(found, Program):
        raise UsageError(
            f"expected a reference with weights, found a program ({found.format})",
            remedy="Give the checkpoint that it was made from, with --reference.",
        )
    return found


def size_of(path: Path) -> int:
    """Bytes of all files that a checkpoint or program is made of; 0 where there is no such file.

    Of what cannot be used, those of the file itself.
    """
    try:
        if path.is_dir():
            return bytes_of(directories.read(path).files)
        kind = kind_of(path)
        return path.stat().st_size if kind is None else _program(path, kind).size
    except (OSError, ValueError, ClipcheckError):
        return path.stat().st_size if os.path.exists(path) else 0  # noqa: PTH110


def weights_of(subject: Checkpoint | Program, reference: Checkpoint | None) -> Checkpoint:
    """The checkpoint whose weights the subject has, or has to have."""
    if isinstance(subject, Checkpoint):
        return subject
    if reference is None:
        raise ValueError("a program has no weights of its own")
    return reference


def beside(path: Path) -> Path:
    """The checkpoint that a program is compared with where none is named: the file beside it that
    has its name but for the ending.

    Raises:
        UsageError: there is none.
    """
    for ending in _BESIDE:
        other = path.with_suffix(ending)
        if other != path and other.is_file():
            return other
    names = ", ".join(path.with_suffix(ending).name for ending in _BESIDE)
    raise UsageError(
        f"{path}: expected the checkpoint that this program was made of beside it, found none of "
        f"{names}",
        remedy="Name it with --reference CHECKPOINT.",
    )
