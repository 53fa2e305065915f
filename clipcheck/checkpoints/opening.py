"""Open whatever can be judged: a checkpoint, or a program whose checkpoint is another file."""

from __future__ import annotations

import os
from pathlib import Path

from clipcheck.checkpoints import directories
from clipcheck.checkpoints.artefacts import kind_of
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program, bytes_of
from clipcheck.checkpoints.formats import locate, open_checkpoint
from clipcheck.checkpoints.onnx_data import data_files
from clipcheck.errors import ClipcheckError, UsageError

_BESIDE = (".safetensors", ".pt", ".pth", ".bin")
"""How the checkpoint beside a program may end, in the order in which it is looked for."""


def open_subject(
    name: str | os.PathLike[str], download_root: str | os.PathLike[str] | None = None
) -> Checkpoint | Program:
    """Open what is to be judged. Nothing of it is run.

    Args:
        name: a released name, or the path of a file or folder.
        download_root: as for `open_checkpoint`.

    Raises:
        ClipcheckError: as for `open_checkpoint`.
    """
    path = locate(name, download_root)
    # Not `Path.is_file`, which raises where the folder may not be read: opening it tells that.
    kind = kind_of(path) if os.path.isfile(path) else None  # noqa: PTH113
    return open_checkpoint(name, download_root) if kind is None else _program(path, kind)


def _program(path: Path, kind: Format) -> Program:
    # What torch writes as pt2 has all of its weights inside.
    return Program(path, kind, data_files(path) if kind is Format.ONNX else ())


def open_reference(
    subject: Checkpoint | Program,
    name: str | os.PathLike[str] | None,
    download_root: str | os.PathLike[str] | None = None,
) -> Checkpoint | None:
    """What the subject is compared with, where that is another file.

    Args:
        subject: what is judged.
        name: the one that was asked for. Without, a checkpoint is its own reference, and that of a
            program is the file beside it that has its name but for the ending.
        download_root: as for `open_checkpoint`.

    Raises:
        UsageError: a program has no reference, or the reference is a program.
        ClipcheckError: as for `open_checkpoint`.
    """
    if name is None and isinstance(subject, Checkpoint):
        return None
    found = open_subject(name or beside(subject.path), download_root)
    if isinstance(found, Program):
        raise UsageError(
            f"expected a reference with weights, found a program ({found.format})",
            remedy="Give the checkpoint that it was made of, with --reference.",
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
    """The checkpoint whose weights the subject has, or has to have.

    Args:
        subject: what is judged.
        reference: what `open_reference` gave for it.
    """
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
