"""Write files atomically.

A file is first written beside its destination, in the folder ``.clipcheck-MACHINE-RANDOM``, which
is locked while its process lives. A killed process leaves the folder behind; the next process that
writes there removes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipcheck.errors import OutputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path, *, room: int = 0) -> Iterator[Path]:
    """Yield a temporary path, whose file replaces ``path`` when the block succeeds.

    If the block fails, nothing is left, and ``path`` is unchanged. The temporary file has the same
    name, in a folder of its own, because torch writes the name into its zip files.

    Args:
        path: the file to write. If it is a symbolic link, its target is replaced.
        room: number of bytes to reserve first, to detect a full disk.

    Raises:
        OutputError: the file cannot be written: no such folder, no permission, no room.
    """
    try:
        target = _target(path)
        with _folder_in(target.parent) as folder:
            _require_room(folder, room)
            temporary = folder / target.name
            yield temporary
            _finish(temporary)
            temporary.replace(target)
    except OSError as error:
        raise _failed(path, error) from error


@contextmanager
def creating(
    folder: Path, *, room: int = 0, ours: Callable[[Path], bool] = lambda _: False
) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to ``folder`` when the block succeeds.

    As with ``git clone``, ``folder`` must not exist, or be empty, so that no other files are
    deleted. If the block fails, nothing is left.

    Args:
        ours: tells whether an existing ``folder`` may be replaced.

    Raises:
        OutputError: it cannot be written: not empty, no permission, no room.
    """
    try:
        target = Path(os.path.realpath(folder))
        _require_vacant(target, ours)
        with _folder_in(target.parent) as outer:
            _require_room(outer, room)
            temporary = outer / target.name
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                _finish(file)
            _require_vacant(target, ours)
            if target.exists():
                # A rename is one step, so the folder is never incomplete.
                target.rename(outer / f"{target.name}.before")
            temporary.replace(target)
    except OSError as error:
        raise _failed(folder, error) from error


def require_file(path: Path) -> None:
    """Raise if `replacing` could not write this file, before long work for it.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with _folder_in(_target(path).parent):
            pass
    except OSError as error:
        raise _failed(path, error) from error


def require_folder(folder: Path, ours: Callable[[Path], bool]) -> None:
    """Raise if `creating` could not write this folder, before long work for it.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        target = Path(os.path.realpath(folder))
        _require_vacant(target, ours)
        with _folder_in(target.parent):
            pass
    except OSError as error:
        raise _failed(folder, error) from error


def removing(folder: Path) -> None:
    """Remove a folder with its contents in one step.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        with _folder_in(folder.parent) as outer:
            folder.rename(outer / folder.name)
    except OSError as error:
        raise OutputError(
            f"cannot be removed ({error.strerror or error})",
            remedy="Remove it, or give another folder.",
            path=folder,
        ) from error


@contextmanager
def _folder_in(parent: Path) -> Iterator[Path]:
    """Yield a new folder in ``parent``; remove it afterwards, and those of killed processes."""
    mine = f".clipcheck-{_machine()}-"
    for folder in parent.glob(f"{mine}*"):
        _sweep(folder)
    while True:
        with (
            tempfile.TemporaryDirectory(dir=parent, prefix=mine) as name,
            _locked(Path(name), otherwise=True) as alone,
        ):
            # Before the lock, another process may have removed it as a killed process's folder.
            if alone:
                yield Path(name)
                return


def _machine() -> str:
    """Return an id of this machine: locks on network folders may only work within a machine."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove the folder if its process is dead; ignore errors, and leave links."""
    with suppress(OSError), _locked(folder, otherwise=False) as alone:
        if alone:
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path, *, otherwise: bool) -> Iterator[bool]:
    """Lock the folder for the block, and yield whether that succeeded; ``otherwise`` if folders
    cannot be locked, as on Windows and NFS."""
    try:
        import fcntl
    except ImportError:
        yield otherwise
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = folder.exists()
        except BlockingIOError:
            alone = False
        except OSError:
            alone = otherwise
        yield alone
    finally:
        os.close(descriptor)


def _finish(file: Path) -> None:
    """Write the bytes to the disk before the rename: otherwise a power cut may keep the name and
    lose the bytes."""
    with file.open("r+b") as written:
        os.fsync(written.fileno())
    # Some writers deny other users access; these files are not secret.
    file.chmod(0o666 & ~_umask())


def _require_vacant(target: Path, ours: Callable[[Path], bool]) -> None:
    if target.exists() and ours(target):
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what = "it is not empty" if target.is_dir() else "it is a file"
        raise OSError(errno.ENOTEMPTY, f"{what}, and was not changed")


def _target(path: Path) -> Path:
    """Resolve ``path``; raise for devices such as /dev/null, which a file must not replace."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file")
    return target


def _require_room(folder: Path, size: int) -> None:
    """Reserve ``size`` bytes and free them again.

    On a full disk torch's TorchScript writer does not raise: it ends the process, from a
    destructor (caffe2/serialize/inline_container.cc).
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in _NO_ROOM:  # Other errors: the file system cannot reserve space.
                raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _failed(path: Path, error: OSError) -> OutputError:
    parent = path.absolute().parent
    if not parent.exists():
        return OutputError(
            f"cannot be written: the folder '{parent}' does not exist",
            remedy="Create the folder, or give another output path.",
            path=path,
        )
    return OutputError(
        f"cannot be written ({error.strerror or error})",
        remedy="Give another output path, or make room or permission for this one.",
        path=path,
    )
