"""Compiled and exported programs that are built once and kept, in a folder of bounded size.

For each key, by its hash, the folder holds::

    HASH/             the entry: all files of what was built. It is there whole, or not at all
    HASH/.sha256.json the files' checksums; its time of change is when the entry was last used
    HASH.HEX.part/    an entry on its way in or out; what a killed process left of one
    .HASH.lock        held by who looks for the entry, builds it or removes it
    .HASH.*.used      held by each process that was given the entry, for as long as it may read it

All locks are the system's: they end with the process that holds them, however it ends.
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
"""The environment variable that names the folder."""

DEFAULT_FOLDER = "~/.cache/clipcheck/artefacts"

LIMIT_VARIABLE = "CLIPCHECK_ARTEFACTS_LIMIT"
"""The environment variable that says how large the folder may grow."""

DEFAULT_LIMIT = 20 * 10**9
"""Limit in bytes: room for some ten ways to run each of three ViT-B/32, at 0.6 GB a piece in
float32."""

_RECORD = ".sha256.json"
_PART = ".part"
_USED = ".used"


def default_folder() -> Path:
    """Return the folder of artefacts: ``$CLIPCHECK_ARTEFACTS``, or else
    ``~/.cache/clipcheck/artefacts``.

    A leading ``~`` stands for the home folder; an empty name counts as none.
    """
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).expanduser()


def limit_in_bytes() -> int:
    """How large the folder may grow: ``$CLIPCHECK_ARTEFACTS_LIMIT``, or else 20 GB.

    It is a number of bytes, or one with a unit: kB, MB, GB or TB, in powers of 1000.

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
    """An artefact that was asked for.

    Attributes:
        path: the file.
        seconds: how long it took to build; None where it was there already.
    """

    path: Path
    seconds: float | None


class Artefacts:
    """Keeps what was built, by all that it depends on.

    Of several processes that ask for the same at once, one builds it and the others wait for it.
    What is given is not removed by anybody for as long as this object lives. A folder that cannot
    be read or written to is done without, with a warning.

    Args:
        folder: where; None keeps nothing.
        scratch: where things are built, and stay where they are not kept.
        limit: bytes that the folder may hold, see `limit_in_bytes`. What was used last stays, and
            what is in use, even where they are more than that.

    Attributes:
        got: all that was asked for, once each, in that order.

    Raises:
        UsageError: the environment names a limit that is none.
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
        """The file ``name``, as ``build`` wrote it now or before for the same key.

        Args:
            name: of the file, with its ending.
            key: all that it depends on, as versions and options, beside clipcheck's own version;
                the processor too, where it is code for one.
            build: writes it to the path that it is given. It has the path's folder to itself, and
                what it writes beside the file is kept with it. The folder is moved afterwards, so
                that a file may name another in it only by its name.

        Raises:
            ValueError: ``build`` did not write it.
        """
        entry = _hash(name, key)
        if entry not in self._given:
            self._given[entry] = self._provided(entry, name, build)
        return self._given[entry] / name

    def _provided(self, entry: str, name: str, build: Callable[[Path], None]) -> Path:
        """The folder of the entry."""
        kept = self._kept
        if kept is None:
            return self._built(name, build)
        try:
            lock = kept.lock(entry)
        except OSError as error:
            # A shared folder is often read-only: what is sound in it serves all the same.
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
        """A new folder in scratch, with the file."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        began = time.perf_counter()
        try:
            build(folder / name)
            if not (folder / name).exists():
                raise ValueError(f"{name} was to be built, and was not")
        except BaseException:
            shutil.rmtree(folder)
            raise
        self.got.append(Got(folder / name, time.perf_counter() - began))
        return folder

    def _keep(self, kept: _Kept, entry: str, built: Path) -> Path:
        """Keep what was built and return where it is now: in the entry's place, or still where it
        was built."""
        with self._telling():
            # A copy, so that whatever becomes of it on the way, there is one to go on with.
            kept.add(entry, built)
            shutil.rmtree(built)
            last = self.got[-1]
            self.got[-1] = Got(kept.path / entry / last.path.name, last.seconds)
            return kept.path / entry
        return built

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Report an error of the folder and go on without it."""
        try:
            yield
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        """Warn once: it will be the same for all that follow."""
        if self._told or self._kept is None:
            return
        self._told = True
        warnings.warn(
            f"{self._kept.path}: what is built cannot be kept there "
            f"({error.strerror or error}), and is built anew each time. Make room or permission, "
            f"or name another folder by {FOLDER_VARIABLE}.",
            Notice,
            stacklevel=2,
        )


class _Kept:
    """The folder. Of an entry, all but `trim` is for who holds its lock.

    Args:
        path: made, for this user alone, where it is not there: what is in it will be run.
        limit: in bytes.

    Raises:
        OSError: from any of its methods, where the folder cannot be used.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit = limit
        self._marks: list[BaseFileLock] = []

    def lock(self, entry: str) -> AbstractContextManager[object]:
        """Wait until this process alone works on the entry.

        Its file stays: were it removed, a process that still waits for it would lock the removed
        one, and a newcomer a new one, both at once.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return file_lock(self.path / f".{entry}.lock").acquire()

    def is_sound(self, entry: str) -> bool:
        """Whether it is there, with all its files as they were.

        Reading all of it costs a third of a second for 600 MB, which are loaded next anyway. It
        is what a verdict rests on, and neither its size nor its time of change tells a torn write.
        """
        folder = self.path / entry
        try:
            return bool(json.loads((folder / _RECORD).read_bytes()) == _checksums(folder))
        # There is no entry, or no whole record.
        except (OSError, ValueError, RecursionError):
            return False

    def add(self, entry: str, built: Path) -> None:
        """Copy what was built, and only then give it the entry's name. `trim` sweeps up.

        It need not be on the disk then: what a power cut tears is not sound when it is asked for.
        """
        self._remove(entry)
        part = self._part(entry)
        try:
            shutil.copytree(built, part)
            (part / _RECORD).write_text(json.dumps(_checksums(built)), encoding="utf-8")
            part.rename(self.path / entry)
        except OSError:
            # Where locks let two in, the other one may have been first, and swept this one up.
            if not self.is_sound(entry):
                raise

    def use(self, entry: str) -> None:
        """Mark it as used now, and as in use for as long as this object lives."""
        self._in_use(entry)  # Lets the marks go that processes left which have ended.
        mark = file_lock(self.path / f".{entry}.{uuid.uuid4().hex}{_USED}")
        mark.acquire()
        self._marks.append(mark)
        # Finer than the clock that the system would take: some tick every 4 ms alone. And later
        # than all that was used before, though the clock may have been set back since.
        now = max([time.time_ns(), *(used + 1 for used, _, _ in self._entries())])
        os.utime(self.path / entry / _RECORD, ns=(now, now))

    def trim(self) -> None:
        """Remove entries until the rest is within the limit, the least recently used first.

        Those in use stay, and with them the one that was just given.
        """
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
            with suppress(FileNotFoundError):  # Another process replaces it: it will trim, too.
                sizes = [file.stat().st_size for file in _files(record.parent)]
                yield record.stat().st_mtime_ns, record.parent.name, sum(sizes)

    def _removed(self, entry: str) -> bool:
        """Whether it could be removed: not while anybody builds or uses it."""
        with self._alone(entry) as alone:
            if not alone or self._in_use(entry):
                return False
            self._remove(entry)
            return True

    @contextmanager
    def _alone(self, entry: str) -> Iterator[bool]:
        """Whether the entry's lock could be had at once."""
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
        """Whether a process that lives was given it. The marks of others are removed.

        New ones are made only under the entry's lock, so that none is removed that is about to be
        held.
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
        """Remove an entry, which gets another name first: what is left after an interrupt is no
        entry."""
        part = self._part(entry)
        with suppress(FileNotFoundError):
            (self.path / entry).rename(part)
            _remove_folder(part)

    def _part(self, entry: str) -> Path:
        """Return a path of its own, in case two are at the same entry where there are no locks."""
        return self.path / f"{entry}.{uuid.uuid4().hex}{_PART}"


def _hash(name: str, key: Mapping[str, str]) -> str:
    told = json.dumps([__version__, name, sorted(key.items())])
    return hashlib.sha256(told.encode()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of an entry."""
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
