"""Write files whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipcheck.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for the contents of ``path``, which replaces it when the block succeeds.

    When it fails nothing is left, and what was at ``path`` before is untouched. The temporary
    file has the same name, in a folder of its own: torch writes the name into its zip files.

    Raises:
        OutputError: the file cannot be written: no such folder, no permission, no room.
    """
    if path.is_dir():
        raise _failed(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".clipcheck-") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            # Some writers keep their files from other users; this one has no secrets.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    except OSError as error:
        raise _failed(path, error) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot be written ({error.strerror or error})",
        remedy="Give another output path, or make room or permission for this one.",
        path=path,
    )
