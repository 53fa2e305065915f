"""Reserve memory, so that workers wait for each other if they do not fit together."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from clipcheck.system.locks import file_lock, locked_where_possible

_BASE = 600_000_000
_PER_BYTE = 7
"""Bytes of memory for each byte of a file in half precision: a check peaks at 2.3 GB for the 151 M
weights of a ViT-B/32 and at 1.9 GB for the 102 M of an RN50, of which torch takes 0.45 GB."""

_CGROUP = Path("/sys/fs/cgroup")


def estimate(size: int) -> int:
    """Estimate the bytes of memory that the check of a file of this size takes."""
    return _BASE + _PER_BYTE * size


def fits(wanted: int, reserved: Sequence[int], available: int | None) -> bool:
    """Tell whether another worker may start beside those with reservations. The first always may;
    None means that no limit is known."""
    return not reserved or available is None or wanted + sum(reserved) <= available


def available() -> int | None:
    """Return the free bytes of memory, of the machine or of this container."""
    known = [found for found in (_of_machine(), _of_container()) if found is not None]
    return min(known, default=None)


@contextmanager
def reserved(
    folder: Path,
    wanted: int,
    available: Callable[[], int | None] = available,
    pause: float = 0.2,
) -> Iterator[None]:
    """Wait until this much memory is free, and reserve it during the block.

    Each reservation is a file that its process has locked, so it ends with the process. Without
    locks nobody waits.

    Args:
        folder: shared by all workers of a run.
        available: returns the free bytes; called while nobody has a reservation.
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
            # Asked only without other reservations, whose used part is no longer free.
            budget.write_text(str(available() or ""), encoding="utf-8")
        limit = budget.read_text(encoding="utf-8")
        if not fits(wanted, others, int(limit) if limit else None):
            return False
        mine.write_text(str(wanted), encoding="utf-8")
        return True


def _living(folder: Path) -> list[int]:
    """List the reservations of other processes, and delete those of dead ones."""
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
    """Return the bytes left below the limit of a container; its file cache counts as free."""
    try:
        most = int((_CGROUP / "memory.max").read_text(encoding="utf-8"))
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        lines = (_CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return None
    cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, most - used + cached)
