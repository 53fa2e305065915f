"""Write files whole or not at all.

What is on its way stands beside its place, in ``.clipcheck-MACHINE-RANDOM``, which is locked for as
long as its process lives. A process that is killed leaves it; the next that writes there takes it
away.
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
    """A temporary folder for the contents of ``folder``, which gets its name when the block
    succeeds.

    As with ``git clone``, there has to be nothing at ``folder``, or an empty folder: what somebody
    else put there is not for us to take away. When the block fails nothing is left.

    Args:
        ours: tells whether what is at ``folder`` may be replaced.

    Raises:
        OutputError: it cannot be written: it has something in it, no permission, no room.
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
                # In one step, so that at no time half of it is there.
                target.rename(outer / f"{target.name}.before")
            temporary.replace(target)
    except OSError as error:
        raise _failed(folder, error) from error


def removing(folder: Path) -> None:
    """Take away a folder with all that is in it: at no time half of it is there.

    Raises:
        OutputError: it cannot be taken away.
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
    """A new folder in ``parent``, gone after the block, and with it what killed processes left."""
    mine = f".clipcheck-{_machine()}-"
    for folder in parent.glob(f"{mine}*"):
        _sweep(folder)
    while True:
        with (
            tempfile.TemporaryDirectory(dir=parent, prefix=mine) as name,
            _locked(Path(name), otherwise=True) as alone,
        ):
            # Another process may have taken it for a dead one's before it was locked.
            if alone:
                yield Path(name)
                return


def _machine() -> str:
    """Locks may reach no further, where folders are mounted over a network."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _sweep(folder: Path) -> None:
    """Remove it if its process is dead. What cannot be removed stays, as links do."""
    with suppress(OSError), _locked(folder, otherwise=False) as alone:
        if alone:
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path, *, otherwise: bool) -> Iterator[bool]:
    """Whether this process alone has the folder, which is locked for the time of the block;
    ``otherwise`` where folders cannot be locked, as on Windows and NFS."""
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
    """Have it on the disk before it gets its name: else that may outlive a power cut, and the bytes
    not."""
    with file.open("r+b") as written:
        os.fsync(written.fileno())
    # Some writers keep their files from other users; this one has no secrets.
    file.chmod(0o666 & ~_umask())


def _require_vacant(target: Path, ours: Callable[[Path], bool]) -> None:
    if target.exists() and ours(target):
        return
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


def _require_room(folder: Path, size: int) -> None:
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
