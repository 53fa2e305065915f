"""Whether a process without privileges can open a file that this one can."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def within_reach(path: Path) -> bool:
    """Whether its owner, its group and its mode let this user open it.

    Root can open what they do not, as what is mounted into a container often is; a cell of root's
    cannot.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return True
    whole = path.resolve()
    return _allows(whole, stat.S_IROTH) and all(
        _allows(folder, stat.S_IXOTH) for folder in whole.parents
    )


def _allows(path: Path, right: int) -> bool:
    """Whether root has a right by the mode alone."""
    found = path.stat()
    if found.st_uid == os.geteuid():
        right <<= 6
    elif found.st_gid in (os.getegid(), *os.getgroups()):
        right <<= 3
    return bool(found.st_mode & right)
