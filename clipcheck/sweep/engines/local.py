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
        count: of the workers, at least 1.
        scratch: the folder that they keep temporary files in.
        gpus: those that are dealt out, by their names; none where nothing runs on one.
        available: tells the bytes of memory that can be had; asked while nothing runs.
        perform: does a job, in the workers.
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
        """Return the default device, as for a check: the GPU where there is one."""
        return default_device()

    def refusal(self, job: Job) -> str:  # noqa: ARG002 - it is never told
        """There is none: what is too large for the memory is tried alone."""
        return ""


def default_device(say: Progress = silent) -> str:
    """Return the device on which a check runs on this machine where none is given."""
    if not may_have_cuda():
        return "cpu"
    say_import(say)
    from clipcheck.models.loader import resolve_device

    return resolve_device(None).type


def engine_for(
    workers: int | None, checkpoints: int, devices: Sequence[str], scratch: Path
) -> LocalEngine:
    """The engine for a sweep of this machine.

    Args:
        workers: how many were asked for. By default one for each core, or for each GPU where all
            is run on these, and no more than there are checkpoints.
        checkpoints: how many there are.
        devices: all that are run on; ``cuda`` is dealt out, where none is asked for by its number.
        scratch: the folder for temporary files.
    """
    gpus = visible(wanted_gpus(devices), os.environ) if dealt(devices) else []
    most = len(gpus) if gpus and not {"cpu", "mps"} & set(devices) else cores()
    return LocalEngine(workers or max(1, min(most, checkpoints)), scratch, gpus)
