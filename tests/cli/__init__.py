from __future__ import annotations

from pathlib import Path

from clipcheck.checkpoints.checkpoint import Format
from tests.samples import minute_bytes


def minute(path: Path) -> Path:
    """Write an archive of a few hundred kilobytes."""
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    return path
