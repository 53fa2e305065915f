"""Findings of a job of a sweep: as a worker sends it, the ledger keeps it and a document has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from clipcheck.results.document import Document
from clipcheck.results.judgement import LeftOut, Record

SURROUNDINGS = ("DownloadError", "OutputError", "UnavailableError", "UnknownModelError")
"""Errors that say nothing of a checkpoint: another time, or elsewhere, it may be judged. Those of
what is not made for it (`UnfitError`) are none of these."""

CELL = ("IsolationError",)
"""Error of a checkpoint whose own code ended the process that ran it: that counts as if it had
ended ours."""


@dataclass(frozen=True, kw_only=True)
class JobCost:
    """Cost of a job.

    Attributes:
        seconds: None where it did not come to its end.
        bytes: that were fetched for it.
        peak_memory: in bytes; None where the system does not tell.
        worker: who had it, for people; empty where it was never begun.
    """

    seconds: float | None = None
    bytes: int = 0
    peak_memory: int | None = None
    threads: int | None = None
    worker: str = ""


@dataclass(frozen=True)
class Found:
    """Findings on a checkpoint by one backend, as that was asked for."""

    results: tuple[Record, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def failed(self) -> str:
        """Why the surroundings kept it from being judged, or nothing."""
        return self._error_of(SURROUNDINGS)

    @property
    def ended(self) -> str:
        """How the checkpoint ended what ran its code, or nothing."""
        return self._error_of(CELL)

    def _error_of(self, types: tuple[str, ...]) -> str:
        return next((each.error for each in self.results if each.error_type in types), None) or ""

    def named(self, label: str) -> Found:
        """Return the same under another name of the checkpoint."""
        return Found(
            tuple(replace(each, checkpoint=label) for each in self.results),
            tuple(replace(each, checkpoint=label) for each in self.left_out),
        )


@dataclass(frozen=True, kw_only=True)
class Performed:
    """Answer of a worker to a job.

    Attributes:
        failed: why nothing was found, for the surroundings; nothing where something was.
        sha256: of the file; None where it could not be read.
        size: bytes that were fetched.
        units: by backend, as it was asked for.
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
        problem: why it is tried again by the next sweep; None where there is a verdict.
    """

    cost: JobCost = JobCost()
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Cost of a sweep.

    Attributes:
        again: how many checks were begun once more.
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
