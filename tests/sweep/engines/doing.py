"""The jobs of workers in tests: a module that imports little, because each worker imports it."""

from __future__ import annotations

import os
import signal
import time
import zlib
from pathlib import Path

from clipcheck.sweep.jobs import Job


def told(job: Job) -> str:
    """Return the process id of a worker, and the variables that it got."""
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TMPDIR")
    return " ".join([str(os.getpid()), *(os.environ.get(name, "-") for name in names)])


def ended(job: Job) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def long(job: Job) -> str:
    Path(job.label).write_text(str(os.getpid()))
    time.sleep(60)
    return ""


def on_a_node(job: Job) -> tuple[str, bytes]:
    if job.label == "ended":
        with Path(job.source.place).open("a") as log:
            log.write("begun\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if job.label == "long":
        time.sleep(60)
    return str(os.getpid()), zlib.compress(job.label.encode())
