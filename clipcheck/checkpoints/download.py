"""Find the file of a released name in the cache, or download and verify it once.

Beside ``FILE`` its folder holds::

    .FILE.lock             held while a process looks for or downloads the file; stays
    .FILE.verified.json    size and time of the file when its hash was correct
    FILE.HEX.part          a partial download of one process. After an interruption the next
                           process continues and removes it
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from io import BufferedRandom, BufferedReader
from pathlib import Path

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import sha256_of
from clipcheck.checkpoints.transfer import Transfer, without_password
from clipcheck.errors import DownloadError, Notice
from clipcheck.system.locks import locked_where_possible

CACHE_VARIABLE = "CLIPCHECK_CACHE"
"""The environment variable for the folder of the released files."""

DEFAULT_CACHE = "~/.cache/clip"
"""The folder of openai/CLIP's loader, to share its files."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_ROUNDS = 3
"""Number of attempts if another process removes the download."""

_bar_shown: ContextVar[bool] = ContextVar("_bar_shown", default=True)


@contextmanager
def without_bar() -> Iterator[None]:
    """Hide the progress of downloads during the block."""
    before = _bar_shown.set(False)
    try:
        yield
    finally:
        _bar_shown.reset(before)


def cache_directory(download_root: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the released files, which need not exist yet.

    It is the argument, else ``$CLIPCHECK_CACHE``, else ``~/.cache/clip``. A leading ``~`` is the
    home folder; an empty name counts as none.
    """
    chosen = download_root or os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE
    return Path(chosen).expanduser()


def cached(name: str, download_root: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the file of a released model if it is in the cache with its full size, else None.

    It is not hashed, so its content may be wrong.

    Raises:
        UnknownModelError: no released model has this name.
    """
    released = registry.find(name)
    target = cache_directory(download_root) / released.filename
    try:
        there = target.is_file() and target.stat().st_size == released.size
    except OSError:  # a folder that this user may not enter
        return None
    return target if there else None


@dataclass(frozen=True)
class _Wanted:
    """A file to provide.

    Attributes:
        url: its source.
        path: its destination.
        sha256: its SHA-256 or a prefix of it, in lowercase hexadecimal digits, or None.
        size: in bytes, or None.
    """

    url: str
    path: Path
    sha256: str | None
    size: int | None

    def fits(self, digest: str | None, size: int) -> bool:
        """Whether SHA-256 and size match; any SHA-256 does if none is known."""
        right = self.sha256 is None or (digest is not None and digest.startswith(self.sha256))
        return right and self.size in (None, size)


def fetch(
    name: str,
    download_root: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> Path:
    """Return the verified file of a released model; download it if the cache does not have it.

    Args:
        name: from ``available_models()``.
        download_root: see ``cache_directory``.

    Raises:
        UnknownModelError: no released model has this name.
        DownloadError: see `retrieve`.
    """
    released = registry.find(name)
    target = cache_directory(download_root) / released.filename
    wanted = _Wanted(released.url, target, released.sha256, released.size)
    return _retrieved(wanted, progress=progress)


def retrieve(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: bool = True,
) -> Path:
    """Return ``path`` after the file there was verified; download it if it does not exist.

    A file is hashed once; later calls trust it while its size and modification time are the same.
    If several processes call it, one downloads and the others wait. An interrupted download is
    continued, by the same call or the next.

    Args:
        url: ``https:``, ``http:`` or ``file:``. Proxies are those of the environment
            (``https_proxy``, ``http_proxy``, ``no_proxy``).
        path: destination; its folder is created.
        sha256: its SHA-256 or a prefix of it, in hexadecimal digits. Without it only the size shows
            a wrong file.
        size: in bytes.
        progress: show a bar on stderr while downloading, if stderr is a terminal.

    Raises:
        DownloadError: the file does not exist and could not be downloaded: because of the network,
            wrong bytes, or a folder that is not writable.
    """
    known = sha256.lower() if sha256 else None
    return _retrieved(_Wanted(url, Path(path), known, size), progress=progress)


def _retrieved(wanted: _Wanted, *, progress: bool) -> Path:
    try:
        if not _is_recorded(wanted):
            _provide(wanted, progress=progress)
    # The exceptions of requests are OSErrors, except ValueErrors for invalid addresses and headers.
    except (OSError, ValueError) as error:
        raise _failure(wanted, str(error)) from error
    return wanted.path


def _provide(wanted: _Wanted, *, progress: bool) -> None:
    """Verify the existing file, or download it, one process at a time."""
    target = wanted.path
    if target.exists() and not target.is_file():
        raise DownloadError(
            "exists and is not a regular file",
            remedy=f"Remove it, or name another folder by download_root or {CACHE_VARIABLE}.",
            path=target,
        )
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Beside the file, so that all users of the folder share the lock.
            lock = locked_where_possible(target.with_name(f".{target.name}.lock"))
            alone = stack.enter_context(lock)
        except OSError:
            # A shared cache is often read-only: a sound file in it serves without lock or record.
            if target.is_file() and _is_right(wanted, target):
                return
            raise
        # While this process waited, another one may have done the work.
        if _is_recorded(wanted) or _verify(wanted):
            return
        _download(wanted, alone=alone, progress=progress)


def _verify(wanted: _Wanted) -> bool:
    """Tell whether the file is there and right, and record it if so; warn if it is wrong."""
    if not wanted.path.exists():
        return False
    # Taken before hashing: if somebody changes the file meanwhile, the record won't match it.
    stat = wanted.path.stat()
    if _is_right(wanted, wanted.path):
        _record(wanted, stat)
        return True
    what = "size" if wanted.sha256 is None else "SHA256 checksum"
    warnings.warn(
        f"{wanted.path} exists, but the {what} does not match; re-downloading the file",
        Notice,
        stacklevel=5,  # the caller of fetch or retrieve
    )
    return False


def _is_right(wanted: _Wanted, path: Path) -> bool:
    digest = None if wanted.sha256 is None else sha256_of(path)
    return wanted.fits(digest, path.stat().st_size)


def _download(wanted: _Wanted, *, alone: bool, progress: bool) -> None:
    """Download the file, verify it, and then rename it.

    If locks fail, as on some network file systems, each process has its own partial file, and one
    may remove the other's.
    """
    for _ in range(_ROUNDS):
        if _brought(wanted, alone=alone, progress=progress):
            return
        if wanted.path.exists() and _verify(wanted):
            return
    raise OSError("another process took away what was fetched, each time")


def _brought(wanted: _Wanted, *, alone: bool, progress: bool) -> bool:
    """Download once; return False if another process removed the partial file."""
    target = wanted.path
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("x+b") as file:
            if alone:
                _take_over(wanted, part, file)
            _require_room(wanted, file)
            _fill(wanted, file, progress=progress)
            # Flush before the rename: otherwise a power cut may keep the name and the record, and
            # lose the bytes.
            file.flush()
            os.fsync(file.fileno())
            stat = os.fstat(file.fileno())
        try:
            part.replace(target)
        except FileNotFoundError:
            return False
    except BaseException as error:
        if not alone or not _worth_keeping(wanted, part, error):
            part.unlink(missing_ok=True)
        raise
    _record(wanted, stat)
    return True


def _worth_keeping(wanted: _Wanted, part: Path, error: BaseException) -> bool:
    """Whether the next call can continue from it; on a full disk it is removed."""
    wrong = isinstance(error, DownloadError)
    full = isinstance(error, OSError) and error.errno in _NO_ROOM
    if wanted.sha256 is None or wrong or full:
        return False
    return part.exists() and part.stat().st_size > 0


def _take_over(wanted: _Wanted, part: Path, file: BufferedRandom) -> None:
    """Start with the largest partial download of earlier calls, and remove all of them.

    The caller must hold the lock, so nobody writes to them. The partial file is copied, because
    locks may not work.
    """
    left = [path for path in _parts_of(wanted.path) if path != part]
    most = max(left, key=lambda path: path.stat().st_size, default=None)
    if most is not None and wanted.sha256 is not None and _may_belong(wanted, most):
        try:
            with most.open("rb") as source:
                shutil.copyfileobj(source, file)
        except OSError:  # no room for a copy: start from the beginning
            file.seek(0)
            file.truncate()
    for path in left:
        path.unlink(missing_ok=True)


def _may_belong(wanted: _Wanted, part: Path) -> bool:
    return wanted.size is None or part.stat().st_size <= wanted.size


def _parts_of(target: Path) -> list[Path]:
    """Return the partial downloads of this and earlier versions."""
    name = re.compile(re.escape(target.name) + r"(\.[0-9a-f]{32})?\.part")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


def _require_room(wanted: _Wanted, file: BufferedRandom) -> None:
    """Raise if the disk has too little room, if the size is known."""
    missing = 0 if wanted.size is None else wanted.size - file.tell()
    free = shutil.disk_usage(wanted.path.parent).free
    if missing > free:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: {missing:,} bytes are missing, {free:,} fit",
        )


def _fill(wanted: _Wanted, file: BufferedRandom, *, progress: bool) -> None:
    """Download the rest of the file, with a bar on stderr, and verify all of it.

    If the file has parts of several downloads and is wrong, it is downloaded again from the start.
    """
    from tqdm import tqdm

    with tqdm(
        desc=wanted.path.name,
        total=wanted.size,
        initial=file.tell(),
        unit="B",
        unit_scale=True,
        # None: tqdm shows the bar only on a terminal.
        disable=None if progress and _bar_shown.get() else True,
    ) as bar:
        hashed = wanted.sha256 is not None
        transfer = Transfer(wanted.url, file, size=wanted.size, hashed=hashed, bar=bar)
        transfer.run()
        found = _digest(file)
        if transfer.mixed and not wanted.fits(found, file.tell()):
            transfer.restart()
            transfer.run()
            found = _digest(file)
    if not wanted.fits(found, file.tell()):
        raise _failure(
            wanted,
            f"expected {_told(wanted)}, found {file.tell():,} bytes with SHA-256 {found}",
        )


def _told(wanted: _Wanted) -> str:
    size = "a file" if wanted.size is None else f"{wanted.size:,} bytes"
    return size if wanted.sha256 is None else f"{size} with SHA-256 {wanted.sha256}"


def _is_recorded(wanted: _Wanted) -> bool:
    """Tell whether the file was verified before and has not changed since."""
    if wanted.sha256 is None:
        return False
    try:
        recorded: object = json.loads(_record_of(wanted.path).read_bytes())
        return recorded == _facts(wanted, wanted.path.stat())
    except (OSError, ValueError):  # there is no file, no record, or no whole record
        return False


def _record(wanted: _Wanted, stat: os.stat_result) -> None:
    if wanted.sha256 is None:
        return
    target = _record_of(wanted.path)
    # If two processes write at once, the record is invalid, or that of the existing file.
    part = target.with_name(f"{target.name}.part")
    # The record only saves time, so a read-only or full folder is no error.
    with suppress(OSError):
        try:
            part.write_text(json.dumps(_facts(wanted, stat)))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def _record_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.verified.json")


def _facts(wanted: _Wanted, stat: os.stat_result) -> dict[str, object]:
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": wanted.sha256}


def _digest(file: BufferedReader | BufferedRandom) -> str:
    """Return the SHA-256 of the whole file; its position is then the end."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _failure(wanted: _Wanted, reason: str) -> DownloadError:
    url = without_password(wanted.url)
    mirror = ""
    if wanted.url.startswith(f"{registry.base_address()}/"):
        mirror = f"name a mirror by {registry.BASE_VARIABLE}; "
    return DownloadError(
        f"could not be fetched: {without_password(reason).rstrip('.')}",
        remedy="Check the network and the proxy (https_proxy, no_proxy), and that the folder is "
        f"writable and has room; {mirror}or download {url} by hand to {wanted.path}.",
        path=wanted.path,
    )
