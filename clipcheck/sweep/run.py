"""Lead a sweep: hand out jobs, keep what comes back, try again what was lost."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from clipcheck.harness.checking import environment
from clipcheck.results.document import convert_to, parse_json
from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.engines import Engine
from clipcheck.sweep.found import Found, JobCost, Performed, Summary
from clipcheck.sweep.jobs import Job
from clipcheck.sweep.ledger import Ledger, Verdict
from clipcheck.sweep.plan import Plan, Unit
from clipcheck.sweep.worker import unjudged
from clipcheck.system.figures import duration, size
from clipcheck.system.processes import Outcome
from clipcheck.system.progress import Gauge, Progress, silent

DEATHS = 2
"""So many workers may a checkpoint end before that is its verdict."""

LOSSES = 5
"""So many nodes may be lost under a job before it is left to the next sweep."""


State = Literal["consistent", "INCONSISTENT", "not judged", "left out"]


@dataclass(frozen=True)
class Row:
    """Result of a unit.

    Attributes:
        kept: whether it comes from the ledger.
        problem: why it is left to the next sweep; empty if there is a verdict.
    """

    unit: Unit
    found: Found
    cost: JobCost
    kept: bool = False
    problem: str = ""

    @property
    def state(self) -> State:
        """State of the unit, for the report."""
        results = self.found.results
        if any(each.error is not None for each in results):
            return "not judged"
        if not results:
            return "left out"
        return "consistent" if all(each.passed for each in results) else "INCONSISTENT"


@dataclass(frozen=True)
class Swept:
    """Results of a sweep.

    Attributes:
        rows: one for each unit, in the order of the catalogue.
        environment: versions and machine of the leading process.
        unfit: entries of the catalogue that were not judged.
    """

    rows: Sequence[Row]
    environment: Mapping[str, str]
    summary: Summary
    unfit: Sequence[Entry] = ()


Tell = Callable[[str], None]
"""Called with a line for each finished job."""


def run(
    plan: Plan,
    engine: Engine,
    ledger: Ledger,
    *,
    disk: int | None = None,
    progress: Progress | None = None,
    tell: Tell = silent,
) -> Swept:
    """Run the planned jobs, and store their verdicts in the ledger.

    Args:
        disk: size limit of fetched files at the same time, in bytes.
        progress: called with a text on each change, and with the share that is done.
        tell: called with a line for each finished job.
    """
    return _Leader(
        plan=plan, engine=engine, ledger=ledger, disk=disk, progress=progress or silent, tell=tell
    ).lead()


@dataclass(kw_only=True)
class _Leader:
    """The state of a running sweep.

    Attributes:
        running: jobs by number.
        attempts: numbers of the attempts, by the number of a running job.
        losses: number of lost nodes, by the number of a job.
        again: number of restarted jobs.
    """

    plan: Plan
    engine: Engine
    ledger: Ledger
    disk: int | None
    progress: Progress
    tell: Tell
    started: float = field(default_factory=time.monotonic)
    run: int = 0
    running: dict[int, Job] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    losses: Counter[int] = field(default_factory=Counter)
    again: int = 0
    found: dict[str, Row] = field(default_factory=dict)

    def lead(self) -> Swept:
        """Run until no job is left."""
        self.run = self.ledger.begin_run(self.engine.name, self.engine.workers())
        waiting = list(self.plan.jobs)
        while waiting or self.running:
            waiting = self._begin(waiting)
            self._show()
            if self.running:
                settled = [self._settle(outcome) for outcome in self.engine.wait()]
                again = [job for job in settled if job is not None]
                self.again += len(again)
                waiting = again + waiting
        self.ledger.end_run(self.run)
        return Swept(
            [self._row(unit) for unit in self.plan.units],
            environment(),
            Summary(
                seconds=time.monotonic() - self.started,
                engine=self.engine.name,
                workers=self.engine.workers(),
                again=self.again,
            ),
            self.plan.unfit,
        )

    def _begin(self, waiting: list[Job]) -> list[Job]:
        """Start jobs in order while there is room, so that none waits forever; return the rest."""
        for number, job in enumerate(waiting):
            refusal = self._refusal(job)
            if not refusal and not self._has_room(job):
                return waiting[number:]
            attempt = self.ledger.begin_attempt(self.run, job.task, job.label)
            if refusal:
                self.ledger.end_attempt(attempt, "failed", "", refusal)
                self._leave(job, refusal)
            else:
                self.attempts[job.number] = attempt
                self.running[job.number] = job
                self.engine.submit(job)
        return []

    def _refusal(self, job: Job) -> str:
        """Return why a job can never start, or an empty string."""
        if self.disk is not None and job.source.fetched:
            if job.source.size is None:
                return "expected a size of the file to fetch, for --disk. Give the entry a size."
            if job.bytes_to_fetch > self.disk:
                return (
                    f"expected to fetch at most {size(self.disk)}, the limit of --disk, found "
                    f"{size(job.bytes_to_fetch)}."
                )
        return self.engine.refusal(job)

    def _has_room(self, job: Job) -> bool:
        used = sum(each.bytes_to_fetch for each in self.running.values())
        fits = self.disk is None or used + job.bytes_to_fetch <= self.disk
        return fits and self.engine.has_room(job)

    def _settle(self, outcome: Outcome) -> Job | None:
        """Store the outcome of a job; return the job if it must be restarted."""
        job = self.running.pop(outcome.job)
        if outcome.fate == "done":
            return self._judged(job, outcome, convert_to(parse_json(outcome.found), Performed))
        if job.folder is not None:
            shutil.rmtree(job.folder, ignore_errors=True)
        if outcome.fate == "lost":
            self._end(job, outcome, "lost", outcome.reason)
            self.losses[job.number] += 1
            if self.losses[job.number] < LOSSES:
                return job
            self._leave(job, outcome.reason)
            return None
        return self._died(job, outcome)

    def _judged(self, job: Job, outcome: Outcome, performed: Performed) -> Job | None:
        if performed.failed:
            self._end(job, outcome, "failed", performed.failed)
            self._leave(job, performed.failed)
            return None
        ended = tuple(each for each in job.backends if performed.units[each].ended)
        again = bool(ended) and not self._last(job)
        cost = replace(performed.cost, worker=outcome.worker)
        verdicts = []
        for unit in self._units(job):
            found = performed.units[unit.backend]
            if again and unit.backend in ended:
                continue
            row = Row(unit, found, cost, problem=found.failed)
            self.found[unit.key] = row
            # Without a hash, the file cannot be distinguished from a later one.
            if not row.problem and performed.sha256:
                verdicts.append(_verdict(row, performed.sha256))
        if job.source.fetched and performed.sha256:
            self.ledger.keep_source(str(job.source), performed.sha256, performed.size)
        reason = performed.units[ended[0]].ended if ended else ""
        self._end(job, outcome, "died" if ended else "done", reason, verdicts)
        if again:
            return job.of_backends(ended)
        self._tell(job)
        return None

    def _died(self, job: Job, outcome: Outcome) -> Job | None:
        """Handle a dead worker: restart the job once, then it is the verdict."""
        if not self._last(job):
            self._end(job, outcome, "died", outcome.reason)
            return job
        error = (
            f"expected a result, but its worker died {DEATHS} times: the last time "
            f"{outcome.reason}. Check it alone to see how: clipcheck check."
        )
        verdicts = []
        for unit in self._units(job):
            found = unjudged(job, unit.backend, unit.content, error)
            row = Row(unit, found, JobCost(worker=outcome.worker))
            self.found[unit.key] = row
            verdicts.append(_verdict(row, unit.content))
        self._end(job, outcome, "died", outcome.reason, verdicts)
        self._tell(job)
        return None

    def _last(self, job: Job) -> bool:
        """Tell whether another dead worker is the job's last."""
        return self.ledger.times(job.task, "died") + 1 >= DEATHS

    def _end(
        self,
        job: Job,
        outcome: Outcome,
        fate: str,
        reason: str,
        verdicts: Sequence[Verdict] = (),
    ) -> None:
        attempt = self.attempts.pop(job.number)
        self.ledger.end_attempt(attempt, fate, outcome.worker, reason, verdicts)

    def _leave(self, job: Job, problem: str) -> None:
        """Leave a job to the next sweep."""
        for unit in self._units(job):
            found = unjudged(job, unit.backend, unit.content, problem)
            self.found[unit.key] = Row(unit, found, JobCost(), problem=problem)
        self._tell(job)

    def _units(self, job: Job) -> list[Unit]:
        """Return the units of the job without a result."""
        return [unit for unit in self.plan.tasks[job.number] if unit.backend in job.backends]

    def _row(self, unit: Unit) -> Row:
        """Return the row with the unit's own label and path; other units may have equal content."""
        if unit.verdict is not None:
            row = Row(unit, unit.verdict.found, unit.verdict.cost, kept=True)
        else:
            row = self.found[unit.key]
        path = None if unit.entry.source.fetched else unit.entry.source.place
        found = row.found.named(unit.entry.label)
        results = tuple(replace(each, path=path) for each in found.results)
        return replace(row, unit=unit, found=replace(found, results=results))

    def _tell(self, job: Job) -> None:
        rows = [self.found[unit.key] for unit in self.plan.tasks[job.number]]
        states = ", ".join(dict.fromkeys(row.state for row in rows))
        seconds = rows[0].cost.seconds
        took = "" if seconds is None else f", {duration(seconds)}"
        self.tell(f"{self._done()} of {len(self.plan.units)}: {job.label}: {states}{took}")

    def _done(self) -> int:
        return sum(u.verdict is not None or u.key in self.found for u in self.plan.units)

    def _show(self) -> None:
        at = ", ".join(job.label for job in self.running.values())
        self.progress(f"{self._done()} of {len(self.plan.units)} judged; now {at}")
        whole = sum(job.seconds for job in self.plan.jobs)
        if isinstance(self.progress, Gauge) and whole:
            left = sum(j.seconds for j in self.plan.jobs if self._units(j)[0].key not in self.found)
            self.progress.reach(1 - left / whole)


def _verdict(row: Row, content: str) -> Verdict:
    unit = row.unit
    return Verdict(
        key=unit.key_for(content),
        content=content,
        reference=unit.reference,
        backend=unit.backend,
        device=unit.device,
        dtype=unit.dtype,
        found=row.found,
        cost=row.cost,
    )
