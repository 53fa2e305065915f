"""From a released name to its file: found in the cache, or downloaded once and verified."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.registry import Released
from clipcheck.errors import DownloadError

CACHE_VARIABLE = "CLIPCHECK_CACHE"
"""The environment variable that names the folder of the released files."""

DEFAULT_CACHE = "~/.cache/clip"
"""The folder where openai/CLIP's loader keeps them too, so that the two share one copy."""

TIMEOUT_SECONDS = 30.0
"""How long to wait for a connection, and then for each next piece, in seconds.

It is pooch's default. It bounds a stall, not the whole download, however slow that is.
"""

# In bytes. Pooch flushes after each piece, and its 1 KiB would mean a million writes per GB; a
# quarter of a MiB still moves the bar each second on a line of 2 Mbit/s.
_PIECE = 256 * 1024

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


def fetch(
    name: str,
    download_root: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> Path:
    """The verified file of a released model, downloaded if the cache does not have it.

    A file is hashed once; later calls trust it as long as its size and time of change stay the
    same. Of several processes that ask at once, one downloads and the others wait for it.

    Args:
        name: a released name, as listed by ``available_models()``.
        download_root: the folder to look in and to download to; see ``cache_directory``.
        progress: show a bar on stderr while downloading, if stderr is a terminal.

    Raises:
        UnknownModelError: there is no released model of that name.
        DownloadError: the file is neither there nor could it be brought there, whether for the
            network, for wrong bytes, or because the folder cannot be written to.
    """
    released = registry.find(name)
    target = cache_directory(download_root) / released.filename
    try:
        if not _is_recorded(target, released):
            _provide(target, released, progress=progress)
    # The exceptions of requests are OSErrors, save for some about malformed addresses and headers,
    # which are ValueErrors.
    except (OSError, ValueError) as error:
        raise _failure(target, released, str(error)) from error
    return target


def _provide(target: Path, released: Released, *, progress: bool) -> None:
    """Verify the file that is there, or download it, one process at a time."""
    if target.exists() and not target.is_file():
        raise DownloadError(
            "exists and is not a regular file",
            remedy=f"Remove it, or name another folder by download_root or {CACHE_VARIABLE}.",
            path=target,
        )
    try:
        lock = _lock(target)
    except OSError:
        # A shared cache is often read-only: a sound file in it serves without lock or record.
        if target.is_file() and _sha256(target) == released.sha256:
            return
        raise
    with lock:
        # While this process waited, another one may have done the work.
        if _is_recorded(target, released) or _verify(target, released):
            return
        _download(target, released, progress=progress)


def _lock(target: Path) -> AbstractContextManager[object]:
    """Wait until this process alone works on the file; make its folder if need be.

    The lock is a dot-file beside the file, so that whoever shares the folder shares the lock. It
    stays there, out of sight: were it removed, a process that still waits for it would lock the
    removed one, and a newcomer a new one, both at once.
    """
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(target.with_name(f".{target.name}.lock")).acquire()


def _verify(target: Path, released: Released) -> bool:
    """Tell whether the file is there and right, and record it if so; warn if it is wrong."""
    if not target.exists():
        return False
    # Taken before hashing: if somebody changes the file meanwhile, the record won't match it.
    stat = target.stat()
    if _sha256(target) == released.sha256:
        _record(target, released, stat)
        return True
    warnings.warn(
        f"{target} exists, but the SHA256 checksum does not match; re-downloading the file",
        stacklevel=4,  # the caller of fetch
    )
    return False


def _download(target: Path, released: Released, *, progress: bool) -> None:
    """Download the file, verify it, and only then give it its name."""
    with _written_whole(target) as part:
        _transfer(released, part, progress=progress)
        stat = part.stat()
        found = _sha256(part)
        if found != released.sha256:
            raise _failure(
                target,
                released,
                f"expected {released.size:,} bytes with SHA-256 {released.sha256}, "
                f"found {stat.st_size:,} bytes with SHA-256 {found}",
            )
    _record(target, released, stat)


def _transfer(released: Released, part: Path, *, progress: bool) -> None:
    """Copy what the address gives into a file, with a bar on stderr."""
    from pooch import HTTPDownloader
    from tqdm import tqdm

    with ExitStack() as responses:

        def close_at_end(response: Any, **_: object) -> None:
            # Pooch leaves it open when it fails in the middle, and with it the socket.
            responses.callback(response.close)

        # None: tqdm shows the bar only on a terminal.
        bar = responses.enter_context(
            tqdm(
                desc=released.filename,
                total=released.size,
                unit="B",
                unit_scale=True,
                disable=None if progress and _bar_shown.get() else True,
            )
        )
        download = HTTPDownloader(
            progressbar=bar,
            chunk_size=_PIECE,
            timeout=TIMEOUT_SECONDS,
            hooks={"response": close_at_end},
        )
        download(released.url, part, None)


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A file to write to, which gets the target's name if all goes well and goes away if not.

    The name is always the same, which the lock allows: what a killed process left is overwritten.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _is_recorded(target: Path, released: Released) -> bool:
    """Tell whether the file was verified before and has not changed since."""
    try:
        recorded: object = json.loads(_record_of(target).read_bytes())
        return recorded == _facts(released, target.stat())
    except (OSError, ValueError):  # there is no file, no record, or no whole record
        return False


def _record(target: Path, released: Released, stat: os.stat_result) -> None:
    # It only saves time, so a folder that is read-only or full does without it.
    with suppress(OSError), _written_whole(_record_of(target)) as part:
        part.write_text(json.dumps(_facts(released, stat)))


def _record_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.verified.json")


def _facts(released: Released, stat: os.stat_result) -> dict[str, object]:
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": released.sha256}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _failure(target: Path, released: Released, reason: str) -> DownloadError:
    return DownloadError(
        f"{released.url} could not be fetched: {reason.rstrip('.')}",
        remedy="Check the network and the proxy, and that the folder is writable and has room; "
        f"or download {released.url} by hand to {target}.",
        path=target,
    )
