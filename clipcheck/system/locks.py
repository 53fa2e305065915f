"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

_HELD = (errno.EACCES, errno.EAGAIN)
_NONE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def file_lock(path: Path) -> BaseFileLock:
    """A lock on the file, not held yet, for any thread to let go of. The file is made and stays.

    Were it removed, a process that still waits for it would lock the removed one, and a newcomer a
    new one, both at once.

    Raises:
        OSError: the file cannot be made, or its file system has no locks, see `are_missing`.
    """
    from filelock import FileLock

    _require_locks(path)
    return FileLock(path, thread_local=False)


def are_missing(error: OSError) -> bool:
    """Whether it says that a file system has no locks, as some that are mounted over a network."""
    return error.errno in _NONE


@contextmanager
def locked_where_possible(path: Path) -> Iterator[bool]:
    """Whether the lock is held for the time of the block; not where there are no locks.

    Raises:
        OSError: the file cannot be made.
    """
    lock: AbstractContextManager[object] = nullcontext()
    held = True
    try:
        lock = file_lock(path).acquire()
    except OSError as error:
        if not are_missing(error):
            raise
        held = False
    with lock:
        yield held


def _require_locks(path: Path) -> None:
    """Filelock itself waits for ever, or leaves a mark that outlives a killed process.

    Which of them it does depends on the error and on its version.
    """
    try:
        import fcntl
    except ImportError:  # Windows, whose locks are others
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            raise
    finally:
        os.close(descriptor)
