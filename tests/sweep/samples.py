"""Jobs and outcomes of sweeps without any computing, and archives of a few layers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipcheck.audit.faults import fault_named
from clipcheck.gates.result import GateResult
from clipcheck.harness.options import CheckOptions
from clipcheck.results.document import to_json
from clipcheck.results.judgement import Record
from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.found import Found, JobCost, Performed
from clipcheck.sweep.jobs import Job, Source
from clipcheck.sweep.ledger import Ledger
from clipcheck.sweep.plan import Plan, Setting, plan
from clipcheck.system.processes import Outcome
from clipcheck.writers.archive import write_archive
from clipcheck.writers.synthesize import synthesize
from tests.samples import MINUTE

OPTIONS = CheckOptions(device="cpu")

Judge = Callable[[Job], Performed]


def archives(folder: Path, count: int) -> list[Path]:
    """Write archives of one layer, each with other weights; the first has a fault."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"model-{number:02}.pt" for number in range(count)]
    for number, path in enumerate(paths):
        weights = synthesize(MINUTE, number)
        if number:
            write_archive(MINUTE, weights, path)
        else:
            fault = fault_named("gelu-for-quickgelu")
            write_archive(MINUTE, weights, path, alter=fault.plant)
    return paths


def files(folder: Path, count: int) -> list[Entry]:
    """Return entries of files that are no checkpoints, each with other bytes."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"model-{number:02}.pt" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%d" % number)
    return [Entry(label=path.name, source=Source("path", str(path))) for path in paths]


def planned(entries: Sequence[Entry], ledger: Ledger, scratch: Path | None = None) -> Plan:
    """Return the plan, on the CPU."""
    return plan(entries, ledger, Setting(OPTIONS, scratch, "cpu", 1))


def job(number: int = 0, label: str = "model.pt", **other: Any) -> Job:
    """Return a job of a missing file."""
    known = Job(
        number=number,
        task=f"task {number}",
        label=label,
        source=Source("path", f"/nowhere/{label}"),
        options=OPTIONS,
    )
    return replace(known, **other)


def passing(of: Job) -> Performed:
    """Return a worker's findings for a consistent checkpoint."""
    return found(of, passed=True)


def failing(of: Job) -> Performed:
    """Return a worker's findings for an inconsistent checkpoint."""
    return found(of, passed=False)


def found(of: Job, *, passed: bool) -> Performed:
    """Return a worker's findings, without any computing."""
    content = sha256_of(of)
    gate = GateResult(
        name="fidelity", passed=passed, message="far", margin=0.25 if passed else 1800.0
    )
    record = Record(
        of.label,
        of.device,
        path=of.source.place,
        sha256=content,
        dtype=of.dtype or "float32",
        examples=30,
        isolation=(),
        gates=(gate,),
        seconds={"run": 1.5},
        peak_memory=10**9,
    )
    units = {each: Found((replace(record, backend=each or "jit"),)) for each in of.backends}
    cost = JobCost(seconds=1.5, peak_memory=10**9, threads=1)
    return Performed(sha256=content, units=units, cost=cost)


def changed(told: Performed, backend: str, **known: Any) -> Performed:
    """Return the same with other fields in a backend's record."""
    (record,) = told.units[backend].results
    return replace(told, units={**told.units, backend: Found((replace(record, **known),))})


def sha256_of(of: Job) -> str:
    """Return the digest of the job's file; an arbitrary one if it is missing."""
    import hashlib

    path = Path(of.source.place)
    data = path.read_bytes() if path.is_file() else str(of.source).encode()
    return hashlib.sha256(data).hexdigest()


class Stage:
    """An engine with given outcomes, for one job at a time or several.

    Args:
        judge: what is found of a job; an `Outcome` stands for something else than an end.
        count: jobs at a time.
    """

    name = "stage"

    def __init__(self, judge: Callable[[Job], Performed | Outcome], count: int = 1) -> None:
        self.judge = judge
        self.count = count
        self.begun: list[Job] = []
        self.most = 0
        self.closed = False
        self._running: list[Job] = []

    def workers(self) -> int:
        return self.count

    def threads(self) -> int:
        return 1

    def default_device(self) -> str:
        return "cpu"

    def refusal(self, job: Job) -> str:
        return ""

    def has_room(self, job: Job) -> bool:
        return len(self._running) < self.count

    def submit(self, job: Job) -> None:
        self.begun.append(job)
        self._running.append(job)
        self.most = max(self.most, len(self._running))

    def wait(self) -> list[Outcome]:
        job = self._running.pop(0)
        told = self.judge(job)
        if isinstance(told, Outcome):
            return [told]
        return [Outcome(job.number, "done", "worker 0", to_json(told))]

    def close(self) -> None:
        self.closed = True


def rows(ledger: Path, query: str) -> list[tuple[Any, ...]]:
    """Query a ledger through another connection."""
    connection = sqlite3.connect(ledger)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()
