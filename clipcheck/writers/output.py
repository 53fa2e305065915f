"""Write files whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipcheck.errors import OutputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path, *, room: int = 0) -> Iterator[Path]:
    """A temporary path for the contents of ``path``, which replaces it when the block succeeds.

    When it fails nothing is left, and what was at ``path`` before is untouched. The temporary
    file has the same name, in a folder of its own: torch writes the name into its zip files.

    Args:
        path: the file to write. Where it is a symbolic link, its target is replaced.
        room: bytes that are going to be written, if it is to be seen first whether they fit.

    Raises:
        OutputError: the file cannot be written: no such folder, no permission, no room.
    """
    try:
        target = _target(path)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".clipcheck-") as folder:
            _require_room(folder, room)
            temporary = Path(folder) / target.name
            yield temporary
            # Some writers keep their files from other users; this one has no secrets.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
    except OSError as error:
        raise _failed(path, error) from error


@contextmanager
def creating(folder: Path, *, room: int = 0) -> Iterator[Path]:
    """A temporary folder for the contents of ``folder``, which gets its name when the block
    succeeds.

    As with ``git clone``, there has to be nothing at ``folder``, or an empty folder: what somebody
    else put there is not for us to take away. When the block fails nothing is left.

    Args:
        folder: the one to make.
        room: as for `replacing`.

    Raises:
        OutputError: it cannot be written: it has something in it, no permission, no room.
    """
    try:
        target = Path(os.path.realpath(folder))
        _require_vacant(target)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".clipcheck-") as outer:
            _require_room(outer, room)
            temporary = Path(outer) / target.name
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                file.chmod(0o666 & ~_umask())
            _require_vacant(target)
            temporary.replace(target)
    except OSError as error:
        raise _failed(folder, error) from error


def _require_vacant(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what = "it is not empty" if target.is_dir() else "it is a file"
        raise OSError(errno.ENOTEMPTY, f"{what}, and is left as it is")


def _target(path: Path) -> Path:
    """Where ``path`` leads. A device must not be replaced by a file: /dev/null is one."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file")
    return target


def _require_room(folder: str, size: int) -> None:
    """Reserve ``size`` bytes and let them go again.

    On a full disk torch's TorchScript writer does not raise: it ends the process, from a
    destructor (caffe2/serialize/inline_container.cc).
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in _NO_ROOM:  # Any other: this file system cannot tell beforehand.
                raise


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
