"""Engines that run the jobs of a sweep, with one protocol."""

from __future__ import annotations

from typing import Protocol

from clipcheck.sweep.jobs import Job
from clipcheck.system.processes import Outcome


class Engine(Protocol):
    """Runs several jobs at the same time, in other processes."""

    name: str
    """Name of the engine."""

    def workers(self) -> int:
        """Number of jobs that it runs at the same time, as far as known."""

    def threads(self) -> int:
        """Threads of each job."""

    def default_device(self) -> str:
        """Return the device for checks that name none."""

    def refusal(self, job: Job) -> str:
        """Return why it can never run a job, or an empty string."""

    def has_room(self, job: Job) -> bool:
        """Tell whether it can start this job now; always true if nothing runs."""

    def submit(self, job: Job) -> None:
        """Start the job. Call it only if there is room."""

    def wait(self) -> list[Outcome]:
        """Wait until jobs have ended, and return their outcomes. Call it only while some run."""

    def close(self) -> None:
        """End all running jobs."""
