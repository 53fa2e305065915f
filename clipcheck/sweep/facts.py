"""Facts of a file, before it is judged: its hash, by which it is known, and its estimated cost."""

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
        sha256: of the file, or of a folder as `clipcheck.checkpoints.checkpoint.Checkpoint` has it;
            nothing where it cannot be read.
        flops: of one image and one text; None where the file does not tell.
        files: by path, bytes and times of change of each that it is made of.
    """

    sha256: str = ""
    size: int = 0
    flops: Flops | None = None
    files: Mapping[str, list[int]] = field(default_factory=dict, compare=False)


def facts_of(path: Path, ledger: Ledger, say: Progress = silent) -> Facts:
    """Return the facts in the ledger of a file that has not changed since, or read them from the
    file.

    A file is taken to be the same while size and times of change are, as git does. So is what is
    made of several, as a folder or a program with data beside it, while each of them is.
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
    """Bytes, and when it was last changed in nanoseconds; of a folder, of all that is in it."""
    if not path.is_dir():
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    stats = [file.stat() for file in path.iterdir()]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)


def _stamps(files: Iterable[str]) -> dict[str, list[int]]:
    """Bytes and times of change of each that is there; nothing else tells that one is as it was."""
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
        # Why it is none is for the check to tell: the same file is known by its bytes as well.
        return Facts(content_of(path), size, files=_stamps([str(path)]))


def content_of(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal.

    Nothing of what is no file, nor of a program: what it names may be missing, and is part of it.
    """
    from clipcheck.checkpoints.artefacts import kind_of
    from clipcheck.checkpoints.checkpoint import Format, sha256_of

    with suppress(CheckpointError):  # Such a file is known by its bytes.
        if kind_of(path) is Format.ONNX:
            return ""
    try:
        return sha256_of(path)
    except OSError:
        return ""


def beside(path: Path) -> Path | None:
    """The checkpoint that a program is compared with where none is named; None of all else."""
    from clipcheck.checkpoints import opening
    from clipcheck.checkpoints.artefacts import kind_of

    with suppress(ClipcheckError):
        return opening.beside(path) if kind_of(path) else None
    return None
