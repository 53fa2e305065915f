"""Findings of a sweep's job, for workers, the ledger and the JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from clipcheck.results.document import Document
from clipcheck.results.judgement import LeftOut, Record

SURROUNDINGS = ("DownloadError", "OutputError", "UnavailableError", "UnknownModelError")
"""Errors that say nothing about a checkpoint: it may be judged later or elsewhere. `UnfitError` is
not one of them."""

CELL = ("IsolationError",)
"""Error of a checkpoint whose code ended its sandbox process, which counts as a dead worker."""


@dataclass(frozen=True, kw_only=True)
class JobCost:
    """Cost of a job.

    Attributes:
        seconds: None if it did not finish.
        bytes: fetched.
        peak_memory: in bytes; None if unknown.
        worker: name of the worker; empty if it was never started.
    """

    seconds: float | None = None
    bytes: int = 0
    peak_memory: int | None = None
    threads: int | None = None
    worker: str = ""


@dataclass(frozen=True)
class Found:
    """Findings on a checkpoint in one requested backend."""

    results: tuple[Record, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def failed(self) -> str:
        """Why the environment prevented a verdict, or an empty string."""
        return self._error_of(SURROUNDINGS)

    @property
    def ended(self) -> str:
        """How the checkpoint's code ended its sandbox process, or an empty string."""
        return self._error_of(CELL)

    def _error_of(self, types: tuple[str, ...]) -> str:
        return next((each.error for each in self.results if each.error_type in types), None) or ""

    def named(self, label: str) -> Found:
        """Return the findings with another name of the checkpoint."""
        return Found(
            tuple(replace(each, checkpoint=label) for each in self.results),
            tuple(replace(each, checkpoint=label) for each in self.left_out),
        )


@dataclass(frozen=True, kw_only=True)
class Performed:
    """Answer of a worker to a job.

    Attributes:
        failed: why the environment prevented a result, or an empty string.
        sha256: of the file; None if it could not be read.
        size: fetched bytes.
        units: findings by requested backend.
    """

    failed: str = ""
    sha256: str | None = None
    size: int = 0
    units: Mapping[str, Found] = field(default_factory=dict)
    cost: JobCost = JobCost()


@dataclass(frozen=True)
class SweptRecord(Record):
    """A record in the document of a sweep.

    Attributes:
        problem: why the next sweep tries it again; None if there is a verdict.
    """

    cost: JobCost = JobCost()
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Cost of a sweep.

    Attributes:
        again: number of restarted checks.
    """

    seconds: float
    engine: str
    workers: int
    again: int


@dataclass(frozen=True, kw_only=True)
class SweepDocument(Document):
    """Document that `clipcheck sweep --json` writes."""

    results: tuple[SweptRecord, ...]
    sweep: Summary
