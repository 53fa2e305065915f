"""Facts of a file before it is judged: its hash, and the figures for its estimated cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from clipcheck.errors import CheckpointError, ClipcheckError
from clipcheck.sweep.cost import Flops, flops
from clipcheck.sweep.ledger import Ledger
from clipcheck.system.progress import Progress, say_import, silent


@dataclass(frozen=True)
class Facts:
    """Known facts of a file.

    Attributes:
        sha256: of the file, or of a folder as in `clipcheck.checkpoints.checkpoint.Checkpoint`;
            empty if it cannot be read.
        flops: of one image and one text; None where the file does not tell.
        files: by path, size and modification time of each of its files.
    """

    sha256: str = ""
    size: int = 0
    flops: Flops | None = None
    files: Mapping[str, list[int]] = field(default_factory=dict, compare=False)


def facts_of(path: Path, ledger: Ledger, say: Progress = silent) -> Facts:
    """Return the facts of a file from the ledger if it has not changed, or read them.

    A file counts as unchanged while its size and modification time are the same, as in git; so does
    a folder, or a program with data files, while all its files do.
    """
    try:
        size, changed = _stamp(path)
    except OSError:
        return Facts()
    known = ledger.facts(str(path), size, changed, Facts)
    if known is not None and known.files == _stamps(known.files):
        return known
    say_import(say)
    found = _looked_into(path, size)
    if found.sha256:
        ledger.keep_facts(str(path), size, changed, found)
    return found


def _stamp(path: Path) -> tuple[int, int]:
    """Return bytes and modification time in nanoseconds, of a file or of all files in a folder."""
    if not path.is_dir():
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    stats = [file.stat() for file in path.iterdir()]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)


def _stamps(files: Iterable[str]) -> dict[str, list[int]]:
    """Return bytes and modification times of existing files."""
    found = {}
    for file in files:
        with suppress(OSError):
            stat = Path(file).stat()
            found[file] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return found


def _looked_into(path: Path, size: int) -> Facts:
    """Read the facts of a file."""
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.checkpoints.opening import open_subject

    try:
        subject = open_subject(path)
        files = _stamps(str(file) for file in subject.files or (path,))
        if not isinstance(subject, Checkpoint):
            return Facts(subject.sha256, subject.size, files=files)
        return Facts(subject.sha256, subject.size, flops(subject.architecture), files)
    except ClipcheckError:
        # The check reports the error; the file is identified by its bytes.
        return Facts(content_of(path), size, files=_stamps([str(path)]))


def content_of(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal.

    Nothing of what is no file, nor of a program: what it names may be missing, and is part of it.
    """
    from clipcheck.checkpoints.artefacts import kind_of
    from clipcheck.checkpoints.checkpoint import Format, sha256_of

    with suppress(CheckpointError):  # Such a file is known by its bytes.
        if kind_of(path) in (Format.ONNX, Format.OPENVINO):
            return ""
    try:
        return sha256_of(path)
    except OSError:
        return ""


def beside(path: Path) -> Path | None:
    """Return the default reference of a program; None for other files."""
    from clipcheck.checkpoints import opening
    from clipcheck.checkpoints.artefacts import kind_of

    with suppress(ClipcheckError):
        return opening.beside(path) if kind_of(path) else None
    return None
