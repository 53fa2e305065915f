"""From a released name to its file: found in the cache, or downloaded once and verified.

Beside ``FILE`` its folder holds::

    .FILE.lock             held by who looks for the file or fetches it; stays
    .FILE.verified.json    what the file was when its hash was right
    FILE.HEX.part          a file on its way in, of one process alone. What is left of one that was
                           cut off or killed is gone on from by the next, which takes it away
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
"""The environment variable that names the folder of the released files."""

DEFAULT_CACHE = "~/.cache/clip"
"""The folder where openai/CLIP's loader keeps them too, so that the two share one copy."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_ROUNDS = 3
"""How often to begin again where another process takes away what was fetched."""

_bar_shown: ContextVar[bool] = ContextVar("_bar_shown", default=True)


@contextmanager
def without_bar() -> Iterator[None]:
    """No download that is made under it shows its progress."""
    before = _bar_shown.set(False)
    try:
        yield
    finally:
        _bar_shown.reset(before)


def cache_directory(download_root: str | os.PathLike[str] | None) -> Path:
    """The folder of the released files, which need not exist yet.

    It is the argument, or else the environment variable ``CLIPCHECK_CACHE``, or else
    ``~/.cache/clip``. A leading ``~`` stands for the home folder; an empty name counts as none.
    """
    chosen = download_root or os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE
    return Path(chosen).expanduser()


def cached(name: str, download_root: str | os.PathLike[str] | None = None) -> Path | None:
    """The file of a released model if it is in the cache in its full size, else None.

    Neither downloads nor hashes anything, so the content may still be wrong.

    Raises:
        UnknownModelError: there is no released model of that name.
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
    """A file that is to be had.

    Attributes:
        url: where it is.
        path: where it is to be.
        sha256: its SHA-256 or how that begins, in lowercase hexadecimal digits, where it is known.
        size: in bytes, where it is known.
    """

    url: str
    path: Path
    sha256: str | None
    size: int | None

    def fits(self, digest: str | None, size: int) -> bool:
        """Whether a file of that SHA-256 and size is the one. Without a known SHA-256, any is."""
        right = self.sha256 is None or (digest is not None and digest.startswith(self.sha256))
        return right and self.size in (None, size)


def fetch(
    name: str,
    download_root: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> Path:
    """The verified file of a released model, downloaded if the cache does not have it.

    Args:
        name: a released name, as listed by ``available_models()``.
        download_root: the folder to look in and to download to; see ``cache_directory``.

    Raises:
        UnknownModelError: there is no released model of that name.
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
    """The file at ``path``, downloaded if it is not there, and verified.

    A file is hashed once; later calls trust it as long as its size and time of change stay the
    same. Of several processes that ask at once, one downloads and the others wait for it. A
    download that was cut off is gone on with, by the same call or by the next.

    Args:
        url: ``https:``, ``http:`` or ``file:``. Proxies are those of the environment
            (``https_proxy``, ``http_proxy``, ``no_proxy``).
        path: where it is to be; its folder is made if need be.
        sha256: its SHA-256 or how that begins, in hexadecimal digits. Without it nothing but the
            length tells a wrong file.
        size: in bytes.
        progress: show a bar on stderr while downloading, if stderr is a terminal.

    Raises:
        DownloadError: the file is neither there nor could it be brought there, whether for the
            network, for wrong bytes, or because the folder cannot be written to.
    """
    known = sha256.lower() if sha256 else None
    return _retrieved(_Wanted(url, Path(path), known, size), progress=progress)


def _retrieved(wanted: _Wanted, *, progress: bool) -> Path:
    try:
        if not _is_recorded(wanted):
            _provide(wanted, progress=progress)
    # The exceptions of requests are OSErrors, save for some about malformed addresses and headers,
    # which are ValueErrors.
    except (OSError, ValueError) as error:
        raise _failure(wanted, str(error)) from error
    return wanted.path


def _provide(wanted: _Wanted, *, progress: bool) -> None:
    """Verify the file that is there, or download it, one process at a time."""
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
            # Beside the file, so that whoever shares the folder shares the lock.
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
    """Download the file, verify it, and only then give it its name.

    Where locks let two in, as on some file systems that are mounted over a network, each has a
    file of its own, and one may take away the other's.
    """
    for _ in range(_ROUNDS):
        if _brought(wanted, alone=alone, progress=progress):
            return
        if wanted.path.exists() and _verify(wanted):
            return
    raise OSError("another process took away what was fetched, each time")


def _brought(wanted: _Wanted, *, alone: bool, progress: bool) -> bool:
    """Whether it is now there; not if somebody took it away on its way."""
    target = wanted.path
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("x+b") as file:
            if alone:
                _take_over(wanted, part, file)
            _require_room(wanted, file)
            _fill(wanted, file, progress=progress)
            # On the disk before it has its name: else the name may outlive a power cut, and the
            # bytes not, and the record would vouch for them.
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
    """Whether the next call may go on from it. A disk that is full gets its room back."""
    wrong = isinstance(error, DownloadError)
    full = isinstance(error, OSError) and error.errno in _NO_ROOM
    if wanted.sha256 is None or wrong or full:
        return False
    return part.exists() and part.stat().st_size > 0


def _take_over(wanted: _Wanted, part: Path, file: BufferedRandom) -> None:
    """Begin with what is left of earlier downloads, the most of it, and take all that away.

    Only to be called by who holds the lock: nobody writes to them then. Should the lock be none,
    somebody may: so it is copied, and not written to.
    """
    left = [path for path in _parts_of(wanted.path) if path != part]
    most = max(left, key=lambda path: path.stat().st_size, default=None)
    if most is not None and wanted.sha256 is not None and _may_belong(wanted, most):
        try:
            with most.open("rb") as source:
                shutil.copyfileobj(source, file)
        except OSError:  # no room for two: then from the beginning
            file.seek(0)
            file.truncate()
    for path in left:
        path.unlink(missing_ok=True)


def _may_belong(wanted: _Wanted, part: Path) -> bool:
    return wanted.size is None or part.stat().st_size <= wanted.size


def _parts_of(target: Path) -> list[Path]:
    """Those that this version or an earlier one has left."""
    name = re.compile(re.escape(target.name) + r"(\.[0-9a-f]{32})?\.part")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


def _require_room(wanted: _Wanted, file: BufferedRandom) -> None:
    """Before anything is fetched, where it is known how much that is."""
    missing = 0 if wanted.size is None else wanted.size - file.tell()
    free = shutil.disk_usage(wanted.path.parent).free
    if missing > free:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: {missing:,} bytes are missing, {free:,} fit",
        )


def _fill(wanted: _Wanted, file: BufferedRandom, *, progress: bool) -> None:
    """Bring what the file does not hold yet, with a bar on stderr, and verify all of it.

    What was put together, and is wrong, is brought once more, from the beginning.
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
    # Should two write to it at once, it is no whole record, or that of the file that is there.
    part = target.with_name(f"{target.name}.part")
    # It only saves time, so a folder that is read-only or full does without it.
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
    """Of all of it; it is left at its end."""
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
