"""Worker processes on this machine, which share its threads, memory and GPUs.

A worker does one job after another, because importing torch takes seconds. It ends when its parent
process ends, for any reason.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from clipcheck.system import memory
from clipcheck.system.variables import variables
from clipcheck.system.workers import GPUS, THREADS, cores, deal, own_threads, threads

Fate = Literal["done", "failed", "died", "lost"]
"""How a job ended: done; failed because of its environment; its worker died; or its node was lost,
which says nothing about the job."""


_PATIENCE = 10
"""Seconds for an idle worker to end by itself."""


class Job(Protocol):
    """A job for a worker; can be pickled."""

    @property
    def number(self) -> int:
        """Its unique number."""

    @property
    def memory(self) -> int:
        """Estimated bytes of memory."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job.

    Attributes:
        found: result of the job, if ``done``.
        reason: what went wrong, otherwise.
    """

    job: int
    fate: Fate
    worker: str = ""
    found: Any = None
    reason: str = ""


@dataclass
class _Worker:
    """A worker process and its job.

    Attributes:
        number: from 0; a replacement of a dead worker has the same number.
        connection: for jobs and results.
        folder: for its temporary files.
    """

    number: int
    process: BaseProcess
    connection: Connection
    folder: Path
    job: Job | None = field(default=None)

    @property
    def label(self) -> str:
        """Name of the worker."""
        return f"{self.number} (process {self.process.pid})"


class Processes:
    """Runs jobs in processes of this machine, several at a time.

    Args:
        count: number of workers, at least 1.
        scratch: folder for their temporary files.
        perform: does a job, in a worker.
        gpus: names of the GPUs to divide; empty if none is used.
        available: returns the free bytes of memory; called while nothing runs.
    """

    def __init__(
        self,
        count: int,
        scratch: Path,
        perform: Callable[[Any], object],
        gpus: Sequence[str] = (),
        available: Callable[[], int | None] = memory.available,
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
        """Number of workers."""
        return self._count

    def threads(self) -> int:
        """Threads of each worker: its share of the cores, or the number that the user set."""
        told = (own_threads(os.environ) or "").partition(",")[0]  # OpenMP has one for each level
        return int(told) if told.isdecimal() else threads(cores(), self._count)

    def has_room(self, job: Job) -> bool:
        """Tell whether a worker is free, and the memory is enough for the job."""
        running = [each.job.memory for each in self._workers if each.job is not None]
        if len(running) >= self._count:
            return False
        if not running:
            # What they use of theirs is gone from what is free: so it is asked for without them.
            self._budget = self._available()
        return memory.fits(job.memory, running, self._budget)

    def submit(self, job: Job) -> None:
        """Give the job to a free worker, or to a new one."""
        for each in [each for each in self._workers if each.job is None]:
            if not each.process.is_alive():
                self._bury(each)
        free = next((each for each in self._workers if each.job is None), None)
        worker = free or self._start()
        worker.job = job
        with suppress(OSError):  # the worker has just died, which wait() reports
            worker.connection.send(job)

    def wait(self) -> list[Outcome]:
        """Wait, and return the outcomes of jobs that ended or whose worker died."""
        busy = [each for each in self._workers if each.job is not None]
        found: list[Outcome] = []
        while not found:  # a process that has just died may still be reported as alive
            wait([*(w.connection for w in busy), *(w.process.sentinel for w in busy)])
            found = [outcome for each in busy if (outcome := self._ended(each)) is not None]
        return found

    def close(self) -> None:
        """End all workers; their current jobs are dropped."""
        for worker in self._workers:
            if worker.job is not None:
                worker.process.kill()
            # Of one that has nothing to do: it ends by itself, and what it holds is let go of.
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            worker.process.kill()
            worker.process.join()
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
        with variables(self._share(number, folder)):
            process.start()
        theirs.close()
        worker = _Worker(number, process, ours, folder)
        self._workers.append(worker)
        return worker

    def _share(self, number: int, folder: Path) -> dict[str, str]:
        """Return variables for a worker's environment, which torch and BLAS read when imported."""
        share = {"TMPDIR": str(folder)}
        if own_threads(os.environ) is None:
            share |= dict.fromkeys(THREADS, str(self.threads()))
        if self._gpus:
            share[GPUS] = deal(self._gpus, number)
        return share


def serve(connection: Connection, perform: Callable[[Any], object]) -> None:
    """Do jobs until the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = connection.recv()
            connection.send(perform(job))
        except (EOFError, OSError):
            return


def _end_with_parent() -> None:
    """End this process with its parent: nobody would receive the result of a long job."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _how(code: int | None) -> str:
    """Describe how a process ended."""
    if code is not None and code < 0:
        try:
            return f"it was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"it was ended by signal {-code}"
    return f"it ended with code {code}"
