"""Locks that the operating system releases when their process ends, for any reason."""

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
    """Return a lock on the file, not held yet, which any thread may release. The file is created
    and never deleted.

    A waiting process would lock the deleted file, and a new process a new one, both at once.

    Raises:
        OSError: the file cannot be created, or its file system has no locks, see `are_missing`.
    """
    from filelock import FileLock

    _require_locks(path)
    return FileLock(path, thread_local=False)


def are_missing(error: OSError) -> bool:
    """Tell whether an error says that a file system has no locks, as some network file systems."""
    return error.errno in _NONE


@contextmanager
def locked_where_possible(path: Path) -> Iterator[bool]:
    """Hold the lock during the block, and yield whether it is held: False without locks.

    Raises:
        OSError: the file cannot be created.
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
    """Raise if there are no locks: filelock would wait forever, or leave a mark that outlives a
    killed process, depending on the error and its version."""
    try:
        import fcntl
    except ImportError:  # Windows has other locks
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            raise
    finally:
        os.close(descriptor)
