"""Workers that would not fit into memory together wait for each other."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from clipcheck.system.locks import file_lock, locked_where_possible

_BASE = 600_000_000
_PER_BYTE = 7
"""Judging a file of half precision: the 151 M weights of a ViT-B/32 peak at 2.3 GB, the 102 M of an
RN50 at 1.9 GB, of which 0.45 is importing torch."""

_CGROUP = Path("/sys/fs/cgroup")


def estimate(size: int) -> int:
    """Bytes of memory that judging a checkpoint takes, whose file has so many."""
    return _BASE + _PER_BYTE * size


def fits(wanted: int, reserved: Sequence[int], available: int | None) -> bool:
    """Whether one more may start beside those that have reserved memory. The first always may;
    None is no known limit."""
    return not reserved or available is None or wanted + sum(reserved) <= available


def available() -> int | None:
    """Bytes that can still be had: of the machine, or of what this container may use of it."""
    known = [found for found in (_of_machine(), _of_container()) if found is not None]
    return min(known, default=None)


@contextmanager
def reserved(
    folder: Path,
    wanted: int,
    available: Callable[[], int | None] = available,
    pause: float = 0.2,
) -> Iterator[None]:
    """Wait until so much memory is free, and keep it for the time of the block.

    Each reservation is a file that its process holds a lock on, which dies with the process. Where
    the folder has no locks nobody waits.

    Args:
        folder: what all workers of a run share.
        available: tells what can be had; asked while nobody holds any.
    """
    mine = folder / f"{uuid.uuid4().hex}.reserved"
    with locked_where_possible(mine.with_name(f"{mine.name}.lock")) as held:
        while held and not _try(folder, mine, wanted, available):
            time.sleep(pause)
        try:
            yield
        finally:
            mine.unlink(missing_ok=True)


def _try(folder: Path, mine: Path, wanted: int, available: Callable[[], int | None]) -> bool:
    with file_lock(folder / "memory.lock"):
        others = _living(folder)
        budget = folder / "memory.budget"
        if not others:
            # What they use of theirs is gone from what is free: so it is asked for without them.
            budget.write_text(str(available() or ""), encoding="utf-8")
        limit = budget.read_text(encoding="utf-8")
        if not fits(wanted, others, int(limit) if limit else None):
            return False
        mine.write_text(str(wanted), encoding="utf-8")
        return True


def _living(folder: Path) -> list[int]:
    """List the reservations of other processes; those of dead processes are cleared away."""
    from filelock import Timeout

    found = []
    for file in folder.glob("*.reserved"):
        # It goes away when its process is done, which may be now.
        with suppress(FileNotFoundError):
            told = file.read_text(encoding="utf-8")
            try:
                with file_lock(file.with_name(f"{file.name}.lock")).acquire(timeout=0):
                    file.unlink()
            except Timeout:
                found.append(int(told))
    return found


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _of_container() -> int | None:
    """Return the bytes left below the limit of a container; the file cache in it can be taken
    back."""
    try:
        most = int((_CGROUP / "memory.max").read_text(encoding="utf-8"))
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        lines = (_CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return None
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, most - used + cached)
