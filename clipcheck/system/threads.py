"""The number of threads that libraries compute with."""

from __future__ import annotations

import os
import sys

from clipcheck.system.workers import THREADS, cores


def threads() -> int:
    """Return the number of torch's threads if it is imported, else that of the environment, else
    the number of cores."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    written = os.environ.get(THREADS[0], "")
    return int(written) if written.isdecimal() and int(written) else cores()
