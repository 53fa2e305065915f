"""What a file is, before it is judged: its hash, by which it is known, and what it will cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from clipcheck.errors import ClipcheckError
from clipcheck.sweep.cost import Flops, flops
from clipcheck.sweep.ledger import Ledger


@dataclass(frozen=True)
class Facts:
    """What is known of a file.

    Attributes:
        sha256: of the file, or of a folder as `clipcheck.checkpoints.checkpoint.Checkpoint` has it;
            nothing where it cannot be read.
        size: in bytes.
        image: operations that one image takes, in units of 10^9; None where the file does not tell.
        text: the same of one text.
    """

    sha256: str = ""
    size: int = 0
    image: float | None = None
    text: float | None = None

    @property
    def flops(self) -> Flops | None:
        """Of one image and one text."""
        if self.image is None or self.text is None:
            return None
        return Flops(self.image, self.text)


def facts_of(path: Path, ledger: Ledger) -> Facts:
    """What the ledger knows of a file that has not changed since, or what the file tells now.

    A file is taken to be the same while size and time of change are, as git does.
    """
    try:
        size, changed = _stamp(path)
    except OSError:
        return Facts()
    known = ledger.facts(str(path), size, changed)
    if known is not None:
        return Facts(**known)
    found = _looked_into(path, size)
    if found.sha256:
        ledger.keep_facts(str(path), size, changed, asdict(found))
    return found


def _stamp(path: Path) -> tuple[int, int]:
    """Bytes, and when it was last changed in nanoseconds; of a folder, of all that is in it."""
    if not path.is_dir():
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    stats = [file.stat() for file in path.iterdir()]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)


def _looked_into(path: Path, size: int) -> Facts:
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.checkpoints.opening import open_subject

    try:
        subject = open_subject(path)
        if not isinstance(subject, Checkpoint):
            return Facts(subject.sha256, size)
        image, text = flops(subject.architecture)
        return Facts(subject.sha256, subject.size, image, text)
    except ClipcheckError:
        # Why it is none is for the check to tell: the same file is known by its bytes as well.
        return Facts(content_of(path), size)


def content_of(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal; nothing of what is none."""
    from clipcheck.checkpoints.checkpoint import sha256_of

    try:
        return sha256_of(path)
    except OSError:
        return ""
