"""Tell whether a process without privileges could open a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def within_reach(path: Path) -> bool:
    """Tell whether owner, group and mode let this user open the file.

    Root can also open other files, for example those mounted into a container; a sandbox of root
    cannot.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return True
    whole = path.resolve()
    return _allows(whole, stat.S_IROTH) and all(
        _allows(folder, stat.S_IXOTH) for folder in whole.parents
    )


def _allows(path: Path, right: int) -> bool:
    """Tell whether root has a right by the mode alone."""
    found = path.stat()
    if found.st_uid == os.geteuid():
        right <<= 6
    elif found.st_gid in (os.getegid(), *os.getgroups()):
        right <<= 3
    return bool(found.st_mode & right)
