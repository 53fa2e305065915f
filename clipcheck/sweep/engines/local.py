"""Worker processes on this machine, with its threads, memory and GPUs dealt out among them.

A worker judges one job after another, for to import torch takes it seconds. It ends when the
process that started it does, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from clipcheck.sweep.jobs import Job, Outcome
from clipcheck.sweep.worker import perform
from clipcheck.system import memory
from clipcheck.system.workers import (
    GPUS,
    THREADS,
    cores,
    deal,
    dealt,
    own_threads,
    threads,
    visible,
    wanted_gpus,
)


@dataclass
class _Worker:
    """A process, and what it is at.

    Attributes:
        number: from 0 on; one that replaces a dead one has its number.
        process: started.
        connection: jobs go there, and what was found comes back.
        folder: for its temporary files.
        job: what it is at.
    """

    number: int
    process: BaseProcess
    connection: Connection
    folder: Path
    job: Job | None = field(default=None)

    @property
    def label(self) -> str:
        """Name of the worker, for people."""
        return f"{self.number} (process {self.process.pid})"


class LocalEngine:
    """Runs jobs in processes of this machine.

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
        self._count = count
        self._scratch = scratch
        self._gpus = gpus
        self._available = available
        self._perform = perform
        self._budget: int | None = None
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []

    def workers(self) -> int:
        """Return the number of workers that were asked for."""
        return self._count

    def threads(self) -> int:
        """The share of the cores, or what the user set."""
        told = (own_threads(os.environ) or "").partition(",")[0]  # OpenMP has one for each level
        return int(told) if told.isdecimal() else threads(cores(), self._count)

    def default_device(self) -> str:
        """Return the default device, as for a check: the GPU where there is one."""
        return default_device()

    def refusal(self, job: Job) -> str:  # noqa: ARG002 - it is never told
        """There is none: what is too large for the memory is tried alone."""
        return ""

    def has_room(self, job: Job) -> bool:
        """Whether a worker is free, and the memory is enough for one more."""
        running = [each.job.memory for each in self._workers if each.job is not None]
        if len(running) >= self._count:
            return False
        if not running:
            # What they use of theirs is gone from what is free: so it is asked for without them.
            self._budget = self._available()
        return memory.fits(job.memory, running, self._budget)

    def submit(self, job: Job) -> None:
        """Give it to a worker that is free, or to a new one."""
        for each in [each for each in self._workers if each.job is None]:
            if not each.process.is_alive():
                self._bury(each)
        free = next((each for each in self._workers if each.job is None), None)
        worker = free or self._start()
        worker.job = job
        with suppress(OSError):  # It has just died, which waiting for it tells.
            worker.connection.send(job)

    def wait(self) -> list[Outcome]:
        """Wait, and return the outcomes of jobs that came back or whose worker died."""
        busy = [each for each in self._workers if each.job is not None]
        found: list[Outcome] = []
        while not found:  # A process that has just died may not be told of as dead yet.
            wait([*(w.connection for w in busy), *(w.process.sentinel for w in busy)])
            found = [outcome for each in busy if (outcome := self._ended(each)) is not None]
        return found

    def close(self) -> None:
        """End all workers; what they were at is not done."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
            shutil.rmtree(worker.folder, ignore_errors=True)
        self._workers = []

    def _ended(self, worker: _Worker) -> Outcome | None:
        job = worker.job
        if job is None:
            return None
        try:
            if worker.connection.poll():
                found = worker.connection.recv()
                worker.job = None
                return Outcome(job.number, "done", worker.label, found)
        except (EOFError, OSError):
            worker.process.join()
        if worker.process.is_alive():
            return None
        self._bury(worker)
        return Outcome(job.number, "died", worker.label, reason=_how(worker.process.exitcode))

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        worker.connection.close()
        shutil.rmtree(worker.folder, ignore_errors=True)
        self._workers.remove(worker)

    def _start(self) -> _Worker:
        taken = {each.number for each in self._workers}
        number = next(each for each in range(self._count) if each not in taken)
        folder = self._scratch / f"worker-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=serve, args=(theirs, self._perform), name=f"worker {number}"
        )
        with _environment(self._share(number, folder)):
            process.start()
        theirs.close()
        worker = _Worker(number, process, ours, folder)
        self._workers.append(worker)
        return worker

    def _share(self, number: int, folder: Path) -> dict[str, str]:
        """Return the variables to add to a worker's environment: read when torch and BLAS are
        imported."""
        share = {"TMPDIR": str(folder)}
        if own_threads(os.environ) is None:
            share |= dict.fromkeys(THREADS, str(self.threads()))
        if self._gpus:
            share[GPUS] = deal(self._gpus, number)
        return share


def default_device() -> str:
    """Return the device on which a check runs on this machine where none is given."""
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


def serve(connection: Connection, perform: Callable[[Job], str]) -> None:
    """Judge what comes, until the process that started this one ends.

    Args:
        connection: jobs come from there, and what was found goes back.
        perform: does a job.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Who started it ends it.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = connection.recv()
            connection.send(perform(job))
        except (EOFError, OSError):
            return


def _end_with_parent() -> None:
    """A job may be long, and nobody is there any more who would keep what it finds."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Set these variables for the processes that are started under it."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _how(code: int | None) -> str:
    """How a process ended, for people."""
    if code is not None and code < 0:
        try:
            return f"it was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"it was ended by signal {-code}"
    return f"it ended with code {code}"
