"""Worker processes on this machine, for the jobs of a sweep."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from clipcheck.sweep.jobs import Job
from clipcheck.sweep.worker import perform
from clipcheck.system import memory
from clipcheck.system.processes import Processes
from clipcheck.system.progress import Progress, say_import, silent
from clipcheck.system.workers import cores, dealt, may_have_cuda, visible, wanted_gpus


class LocalEngine(Processes):
    """Runs the jobs of a sweep in processes of this machine.

    Args:
        count: number of workers, at least 1.
        scratch: folder for their temporary files.
        gpus: names of the GPUs to divide; empty if none is used.
        available: returns the free bytes of memory; called while nothing runs.
        perform: does a job, in a worker.
    """

    name = "local"

    def __init__(
        self,
        count: int,
        scratch: Path,
        gpus: Sequence[str] = (),
        available: Callable[[], int | None] = memory.available,
        perform: Callable[[Job], str] = perform,
    ) -> None:
        super().__init__(count, scratch, perform, gpus, available)

    def default_device(self) -> str:
        """Return the default device, as for a check: the GPU if there is one."""
        return default_device()

    def refusal(self, job: Job) -> str:  # noqa: ARG002 - it is never told
        """Refuse no job: one that is too large for the memory runs alone."""
        return ""


def default_device(say: Progress = silent) -> str:
    """Return the default device of a check on this machine."""
    if not may_have_cuda():
        return "cpu"
    say_import(say)
    from clipcheck.models.loader import resolve_device

    return resolve_device(None).type


def engine_for(
    workers: int | None, checkpoints: int, devices: Sequence[str], scratch: Path
) -> LocalEngine:
    """Return the engine for a sweep on this machine.

    Args:
        workers: requested number. Default: one for each core, or for each GPU if all jobs run on
            GPUs, and at most one for each checkpoint.
        checkpoints: number of checkpoints.
        devices: of all jobs; GPUs are divided among workers unless one is given by its number.
        scratch: folder for temporary files.
    """
    gpus = visible(wanted_gpus(devices), os.environ) if dealt(devices) else []
    most = len(gpus) if gpus and not {"cpu", "mps"} & set(devices) else cores()
    return LocalEngine(workers or max(1, min(most, checkpoints)), scratch, gpus)
