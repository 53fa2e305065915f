"""A cache of compiled and exported programs, in a folder of limited size.

For each key, by its hash, the folder has::

    HASH/             the entry: all files of an artefact; always complete
    HASH/.sha256.json the files' checksums; its modification time is when the entry was last used
    HASH.HEX.part/    an entry while it is added or deleted, or left by a killed process
    .HASH.lock        held by a process that looks for the entry, builds it or deletes it
    .HASH.*.used      held by each process that uses the entry, as long as it may read it

All locks are the operating system's: they are released when their process ends, for any reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck._version import __version__
from clipcheck.errors import Notice, UsageError
from clipcheck.system.locks import file_lock
from clipcheck.system.sizes import bytes_in

if TYPE_CHECKING:
    from filelock import BaseFileLock

FOLDER_VARIABLE = "CLIPCHECK_ARTEFACTS"
"""Environment variable for the folder."""

DEFAULT_FOLDER = "~/.cache/clipcheck/artefacts"

LIMIT_VARIABLE = "CLIPCHECK_ARTEFACTS_LIMIT"
"""Environment variable for the size limit of the folder."""

DEFAULT_LIMIT = 20 * 10**9
"""Default limit in bytes: about ten backends for each of three ViT-B/32, at 0.6 GB each in float32.
"""

_RECORD = ".sha256.json"
_PART = ".part"
_USED = ".used"


def default_folder() -> Path:
    """Return the cache folder: ``$CLIPCHECK_ARTEFACTS``, or ``~/.cache/clipcheck/artefacts``.

    A leading ``~`` is the home folder; an empty value counts as unset.
    """
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).expanduser()


def limit_in_bytes() -> int:
    """Return the size limit of the folder: ``$CLIPCHECK_ARTEFACTS_LIMIT``, or 20 GB.

    It is a number of bytes, or a number with kB, MB, GB or TB, in powers of 1000.

    Raises:
        UsageError: it is something else.
    """
    written = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not written:
        return DEFAULT_LIMIT
    found = bytes_in(written)
    if found is None:
        raise UsageError(
            f"{LIMIT_VARIABLE}: expected a size as in 5GB or 500MB, found {written!r}",
            remedy="Give bytes, or a number with kB, MB, GB or TB; or leave it unset for 20GB.",
        )
    return found


@dataclass(frozen=True)
class Got:
    """A requested artefact.

    Attributes:
        path: of the file.
        seconds: time to build it; None if it was in the cache.
    """

    path: Path
    seconds: float | None


class Artefacts:
    """A cache of artefacts, by everything that they depend on.

    If several processes request the same artefact, one builds it and the others wait. A returned
    artefact is not deleted as long as this object lives. If the folder cannot be read or written,
    artefacts are built without it, with a warning.

    Args:
        folder: of the cache; None for no cache.
        scratch: folder in which artefacts are built, and stay without a cache.
        limit: bytes of the folder, see `limit_in_bytes`. The last used artefact and those in use
            stay, even if they exceed it.

    Attributes:
        got: all requested artefacts, once each, in order.

    Raises:
        UsageError: the limit in the environment is invalid.
    """

    def __init__(self, folder: Path | None, scratch: Path, *, limit: int | None = None) -> None:
        self._kept: _Kept | None = None
        if folder is not None:
            self._kept = _Kept(folder, limit_in_bytes() if limit is None else limit)
        self._scratch = scratch
        self._given: dict[str, Path] = {}
        self._told = False
        self.got: list[Got] = []

    def get(self, name: str, key: Mapping[str, str], build: Callable[[Path], None]) -> Path:
        """Return the file ``name`` that ``build`` writes now or wrote earlier for the same key.

        Args:
            name: of the file, with its suffix.
            key: everything that it depends on, such as versions, options and, for native code, the
                processor; clipcheck's own version is added.
            build: writes the file to a path in a new folder, which is kept with all its files. The
                folder is moved afterwards, so files may refer to each other only by name.

        Raises:
            ValueError: ``build`` did not write the file.
        """
        entry = _hash(name, key)
        if entry not in self._given:
            self._given[entry] = self._provided(entry, name, build)
        return self._given[entry] / name

    def _provided(self, entry: str, name: str, build: Callable[[Path], None]) -> Path:
        """Return the folder of the entry."""
        kept = self._kept
        if kept is None:
            return self._built(name, build)
        try:
            lock = kept.lock(entry)
        except OSError as error:
            # A shared folder is often read-only: valid entries in it can still be used.
            if kept.is_sound(entry):
                return self._fetched(kept.path / entry, name)
            self._tell(error)
            return self._built(name, build)
        with lock:
            if kept.is_sound(entry):
                folder = self._fetched(kept.path / entry, name)
            else:
                folder = self._keep(kept, entry, self._built(name, build))
            with self._telling():
                kept.use(entry)
        with self._telling():
            kept.trim()
        return folder

    def _fetched(self, folder: Path, name: str) -> Path:
        self.got.append(Got(folder / name, None))
        return folder

    def _built(self, name: str, build: Callable[[Path], None]) -> Path:
        """Build the file in a new folder in scratch."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        began = time.perf_counter()
        try:
            build(folder / name)
            if not (folder / name).exists():
                raise ValueError(f"expected build to write {name}, and it did not")
        except BaseException:
            shutil.rmtree(folder)
            raise
        self.got.append(Got(folder / name, time.perf_counter() - began))
        return folder

    def _keep(self, kept: _Kept, entry: str, built: Path) -> Path:
        """Add the artefact to the cache, and return where it is: in the cache, or still where it
        was built."""
        with self._telling():
            # Copied, so that the original can be used if adding fails.
            kept.add(entry, built)
            shutil.rmtree(built)
            last = self.got[-1]
            self.got[-1] = Got(kept.path / entry / last.path.name, last.seconds)
            return kept.path / entry
        return built

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Report an error of the folder, and continue without it."""
        try:
            yield
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        """Warn once: later artefacts would fail in the same way."""
        if self._told or self._kept is None:
            return
        self._told = True
        warnings.warn(
            f"{self._kept.path}: what is built cannot be kept there "
            f"({error.strerror or error}), and is built anew each time. Free disk space, change "
            f"the permissions, or name another folder with {FOLDER_VARIABLE}.",
            Notice,
            stacklevel=2,
        )


class _Kept:
    """The folder of the cache. All methods but `trim` need the entry's lock.

    Args:
        path: created with access for this user only: its files are run.
        limit: in bytes.

    Raises:
        OSError: from any method, if the folder cannot be used.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit = limit
        self._marks: list[BaseFileLock] = []

    def lock(self, entry: str) -> AbstractContextManager[object]:
        """Wait for the entry's lock.

        Its file is never deleted: a waiting process would lock the deleted file, and a new process
        a new one, both at the same time.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return file_lock(self.path / f".{entry}.lock").acquire()

    def is_sound(self, entry: str) -> bool:
        """Tell whether the entry exists and all checksums match.

        Reading 600 MB takes a third of a second, and they are loaded next anyway. Neither size nor
        modification time would show a torn write.
        """
        folder = self.path / entry
        try:
            return bool(json.loads((folder / _RECORD).read_bytes()) == _checksums(folder))
        # There is no entry, or no whole record.
        except (OSError, ValueError, RecursionError):
            return False

    def add(self, entry: str, built: Path) -> None:
        """Copy the artefact, then rename the copy to the entry. `trim` deletes leftovers.

        No sync is needed: after a power cut, the checksums of a torn entry do not match.
        """
        self._remove(entry)
        part = self._part(entry)
        try:
            shutil.copytree(built, part)
            (part / _RECORD).write_text(json.dumps(_checksums(built)), encoding="utf-8")
            part.rename(self.path / entry)
        except OSError:
            # With locks that do nothing, another process may have been first, and deleted this one.
            if not self.is_sound(entry):
                raise

    def use(self, entry: str) -> None:
        """Mark the entry as used now, and as in use as long as this object lives."""
        self._in_use(entry)  # deletes the marks of processes that have ended
        mark = file_lock(self.path / f".{entry}.{uuid.uuid4().hex}{_USED}")
        mark.acquire()
        self._marks.append(mark)
        # Set explicitly: the file system's clock may tick only every 4 ms. And later than all
        # earlier uses, even if the clock was set back.
        now = max([time.time_ns(), *(used + 1 for used, _, _ in self._entries())])
        os.utime(self.path / entry / _RECORD, ns=(now, now))

    def trim(self) -> None:
        """Delete the least recently used entries until the limit is met, but none in use."""
        with file_lock(self.path / ".lock"):
            for part in self.path.glob(f"*{_PART}"):
                with self._alone(part.name.partition(".")[0]) as alone:
                    if alone:
                        _remove_folder(part)
            found = sorted(self._entries())
            total = sum(size for _, _, size in found)
            for _, entry, size in found:
                if total > self._limit and self._removed(entry):
                    total -= size

    def _entries(self) -> Iterator[tuple[int, str, int]]:
        """Yield for each entry when it was last used, its name, and its size in bytes."""
        for record in self.path.glob(f"*/{_RECORD}"):
            with suppress(FileNotFoundError):  # another process replaces it, and trims as well
                sizes = [file.stat().st_size for file in _files(record.parent)]
                yield record.stat().st_mtime_ns, record.parent.name, sum(sizes)

    def _removed(self, entry: str) -> bool:
        """Delete the entry unless a process builds or uses it; return whether it was deleted."""
        with self._alone(entry) as alone:
            if not alone or self._in_use(entry):
                return False
            self._remove(entry)
            return True

    @contextmanager
    def _alone(self, entry: str) -> Iterator[bool]:
        """Yield whether the entry's lock was free."""
        from filelock import Timeout

        lock = file_lock(self.path / f".{entry}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _in_use(self, entry: str) -> bool:
        """Tell whether a living process uses the entry, and delete the marks of dead ones.

        Marks are created only under the entry's lock, so none is deleted before it is locked.
        """
        from filelock import Timeout

        used = False
        for path in self.path.glob(f".{entry}.*{_USED}"):
            try:
                with file_lock(path).acquire(timeout=0):
                    path.unlink()
            except Timeout:
                used = True
        return used

    def _remove(self, entry: str) -> None:
        """Delete an entry; rename it first, so that after an interrupt no partial entry is left."""
        part = self._part(entry)
        with suppress(FileNotFoundError):
            (self.path / entry).rename(part)
            _remove_folder(part)

    def _part(self, entry: str) -> Path:
        """Return a unique path, in case two processes add the same entry without locks."""
        return self.path / f"{entry}.{uuid.uuid4().hex}{_PART}"


def _hash(name: str, key: Mapping[str, str]) -> str:
    told = json.dumps([__version__, name, sorted(key.items())])
    return hashlib.sha256(told.encode()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of an entry."""
    found = {}
    for path in _files(folder):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256")
    return {name: digest.hexdigest() for name, digest in sorted(found.items())}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != _RECORD]


def _remove_folder(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
