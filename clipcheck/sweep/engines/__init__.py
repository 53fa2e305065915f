"""Engines that run the jobs of a sweep: each is a file here, under one protocol."""

from __future__ import annotations

from typing import Protocol

from clipcheck.sweep.jobs import Job
from clipcheck.system.processes import Outcome


class Engine(Protocol):
    """Runs jobs, several at a time, in other processes."""

    name: str
    """Name of the engine."""

    def workers(self) -> int:
        """How many jobs it runs at a time, as far as is known now."""

    def threads(self) -> int:
        """How many threads each of them has."""

    def default_device(self) -> str:
        """Return the device for checks that name none."""

    def refusal(self, job: Job) -> str:
        """Why it can never run a job, or nothing."""

    def has_room(self, job: Job) -> bool:
        """Whether it can begin this one now. Where nothing runs it can."""

    def submit(self, job: Job) -> None:
        """Begin it. Only to be called where there is room."""

    def wait(self) -> list[Outcome]:
        """Wait until a job has ended, and tell of those that have. Only while some are running."""

    def close(self) -> None:
        """End all that runs, whatever it does."""
