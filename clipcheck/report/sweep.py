"""Render a sweep as text and JSON, and its plan as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from clipcheck.report.advice import KEPT
from clipcheck.report.cells import command, shortened, visible, wrapped
from clipcheck.report.lines import BAD, GOOD, UNKNOWN
from clipcheck.report.repeat import repeat
from clipcheck.report.tables import table
from clipcheck.report.verdict import verdict, worst_first
from clipcheck.results.document import as_record, result_of, to_json
from clipcheck.results.judgement import LeftOut, Record, Result
from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.cost import makespan, rates
from clipcheck.sweep.found import SweepDocument, SweptRecord
from clipcheck.sweep.jobs import DEFAULT
from clipcheck.sweep.plan import Plan, Unit
from clipcheck.sweep.run import Row, Swept
from clipcheck.system.figures import counted, duration, multiple, percent, size
from clipcheck.system.width import width

WORKERS = (8, 64)
"""Numbers of workers for which a plan also estimates the time."""

_HEADS = ("checkpoint", "verdict", "worst gate", "seconds", "fetched", "memory")
_STYLES = {"consistent": GOOD, "INCONSISTENT": BAD, "not judged": UNKNOWN}


def result(swept: Swept) -> Result:
    """Return the results of all checks of a sweep as one result."""
    return result_of(_document(swept))


def render_json(swept: Swept) -> str:
    """Render the JSON document, schema 1, with the cost of each judgement. Ends with a newline."""
    return to_json(_document(swept))


def _document(swept: Swept) -> SweepDocument:
    records = _records(swept.rows)
    return SweepDocument(
        passed=bool(records) and all(each.passed for each in records),
        clipcheck=swept.environment["clipcheck"],
        environment=swept.environment,
        results=tuple(records),
        left_out=(
            *(each for row in swept.rows for each in row.found.left_out),
            *(LeftOut(each.label, "", "", "", each.unfit) for each in swept.unfit),
        ),
        sweep=swept.summary,
    )


def _records(rows: Sequence[Row]) -> list[SweptRecord]:
    """Return each record once: a backend given by name may be part of ``all`` as well."""
    found: dict[str, SweptRecord] = {}
    for row in rows:
        for each in row.found.results:
            swept = as_record(each, SweptRecord, cost=row.cost, problem=row.problem or None)
            found.setdefault(each.title, swept)
    return list(found.values())


def render(swept: Swept) -> str:
    """Return the whole report without colours. Ends without a newline."""
    return report(swept).plain


def report(swept: Swept) -> Text:
    """Return a line for each judgement, what failed and why, the verdict, and the cost."""
    found = result(swept)
    lines = [_table(swept.rows)]
    for row in swept.rows:
        lines += [Text(line) for line in _reasons(row)]
    lines += [Text(line) for line in _unfit(swept.unfit)]
    lines.append(Text())
    lines += [Text(line, "bold") for line in wrapped(verdict(found))]
    lines += [Text(line) for line in _cost_and_next(swept, found)]
    return Text("\n").join(lines)


def brief(swept: Swept) -> Text:
    """Return a line with the reason for each failure, and the verdict."""
    records = _records(swept.rows)
    several = len({_run_of(each) for each in records if each.error is None}) > 1
    lines = [line for each in records if not each.passed for line in _reason(each, several)]
    lines += wrapped(verdict(result(swept)))
    return Text("\n").join(map(Text, lines))


def plan_text(plan: Plan, workers: int, threads: int) -> str:
    """List the jobs that would run, in their order, and the estimated time.

    Args:
        plan: of the sweep.
        workers: how many would run here.
        threads: of each worker.
    """
    known = sum(unit.verdict is not None for unit in plan.units)
    seconds = [job.seconds for job in plan.jobs]
    rows = []
    for job in plan.jobs:
        fetched = size(job.bytes_to_fetch) if job.bytes_to_fetch else "-"
        if job.source.estimated:
            fetched = f"~{fetched}"
        if job.source.fetched and job.source.size is None:
            fetched = "unknown"
        backends = ", ".join("default" if b == DEFAULT else b for b in job.backends)
        rows.append((shortened(visible(job.label), 40), f"{job.seconds:.1f}", fetched, backends))
    heads = ("checkpoint", "seconds", "to fetch", "backends")
    lines = [table(rows, heads=heads, right=[1, 2], wraps=True).plain, *_unfit(plan.unfit)]
    lines += [
        "",
        f"{counted(len(plan.units), 'run')} to judge, of which the ledger already has {known}.",
    ]
    fetched = size(plan.bytes_to_fetch) if plan.bytes_to_fetch else "nothing"
    lines.append(
        f"{counted(len(plan.jobs), 'check')} (runs of one file share one): "
        f"{sum(seconds):,.0f} s of one worker, {fetched} to fetch."
    )
    if plan.jobs:
        lines += _estimated(plan, workers, threads)
    return "\n".join(lines)


def _estimated(plan: Plan, workers: int, threads: int) -> list[str]:
    """Estimate the time with this number of workers and with more, of as many threads each."""
    seconds = [job.seconds for job in plan.jobs]

    def took(count: int) -> str:
        return duration(makespan(seconds, count, plan.bytes_to_fetch))

    those = f"{counted(workers, 'worker')} of {counted(threads, 'thread')} each"
    more = ", ".join(f"{took(count)} with {count}" for count in WORKERS if count > workers)
    here = f"About {took(workers)} with {those}{'; ' if more else ''}{more}."
    return wrapped(f"{here} Measured on {rates().machine}.")


def _table(rows: Sequence[Row]) -> Text:
    states = [Text(row.state, _STYLES.get(row.state, "")) for row in rows]
    told: list[tuple[str | Text, ...]] = [
        (state, _worst(row), *_costs(row)) for state, row in zip(states, rows, strict=True)
    ]
    beside = table(told, heads=_HEADS[1:]).plain.split("\n")
    room = width() - 2 - max(map(cell_len, beside))
    names = []
    ways = {_conditions_of(row.unit) for row in rows}
    for row in rows:
        name = visible(row.unit.entry.label)
        if len(ways) > 1:
            conditions = _conditions_of(row.unit)
            name = f"{shortened(name, max(8, room - len(conditions) - 1))} {conditions}"
        names.append(shortened(name, room))
    cells = [(name, *each) for name, each in zip(names, told, strict=True)]
    return table(cells, heads=_HEADS, right=[3, 4, 5])


def _conditions_of(unit: Unit) -> str:
    return " ".join(part for part in (unit.backend, unit.device, unit.dtype) if part)


def _run_of(record: Record) -> str:
    return " ".join(part for part in (record.backend, record.device, record.dtype) if part)


def _worst(row: Row) -> str:
    """Name the gate that judged with the greatest margin, and the margin."""
    gates = [gate for each in row.found.results for gate in each.gates if gate.judged]
    if not gates:
        return ""
    worst = max(gates, key=lambda gate: gate.margin)
    if worst.margin == float("inf"):
        return worst.name
    if worst.margin <= 1:
        return f"{worst.name} {percent(worst.margin, '')}"
    return f"{worst.name} {multiple(worst.margin)}"


def _costs(row: Row) -> list[str]:
    cost = row.cost
    return [
        "-" if cost.seconds is None else f"{cost.seconds:.1f}",
        size(cost.bytes) if cost.bytes else "-",
        size(cost.peak_memory) if cost.peak_memory else "-",
    ]


def _reason(each: Record, several: bool) -> list[str]:
    """Say why a judgement did not pass, in one line, which may be wrapped.

    Args:
        each: the judgement.
        several: whether runs differ in backend, device or dtype, so that these are named.
    """
    name = " ".join([visible(each.checkpoint), *([_run_of(each)] if several else [])])
    if each.error is not None:
        return wrapped(each.error, f"{name}: not judged: ", "  ")
    failed = sorted((gate for gate in each.gates if not gate.passed), key=lambda gate: gate.margin)
    worst = failed.pop()
    others = f" Also: {', '.join(gate.name for gate in failed)}." if failed else ""
    message = f"{worst.message.removesuffix('.')}.{others}"
    return wrapped(message, f"{name}: FAIL  {worst.name}: ", "  ")


def _reasons(row: Row) -> Iterator[str]:
    """Yield the reasons why a row did not pass."""
    for each in row.found.results:
        if each.passed:
            continue
        yield ""
        yield from wrapped(f"{each.checkpoint}: {_run_of(each)}")
        if each.error is not None:
            yield from wrapped(each.error, "  not judged: ")
        for gate in each.gates:
            if not gate.passed:
                yield from wrapped(gate.message, f"  FAIL  {gate.name}: ")
        if each.failing_example is not None:
            yield from wrapped(each.failing_example.message, "  smallest input: ")


def _unfit(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield each reason for leaving out entries once, with their number."""
    counted = Counter(entry.unfit for entry in entries)
    if counted:
        yield ""
    for reason, count in counted.most_common():
        yield from wrapped(reason, f"{count} left out: ", "  ")


def _cost_and_next(swept: Swept, found: Result) -> list[str]:
    """Report the cost of the sweep, and the command that shows its worst failure."""
    rows = swept.rows
    kept = sum(row.kept for row in rows)
    left = sum(bool(row.problem) for row in rows)
    fetched = sum(row.cost.bytes for row in rows if not row.kept)
    summary = swept.summary
    workers, took = counted(summary.workers, "worker"), duration(summary.seconds)
    parts = [
        f"{len(rows) - kept - left} judged in {took} by {workers} ({summary.engine})",
        f"{kept} from the ledger" if kept else "",
        f"{summary.again} restarted" if summary.again else "",
        f"{size(fetched)} fetched" if fetched else "",
    ]
    lines = wrapped(", ".join(part for part in parts if part) + ".")
    failed = [each for each in found.judgements if each.error is None and not each.passed]
    if failed:
        worst = worst_first(failed)[0]
        lines += command([*repeat(worst), "--report", KEPT], "Next: ")
        lines += ["      writes a report that shows what fails, and saves the failing input."]
    if left:
        lines += wrapped(
            f"{left} could not be judged for reasons that may be temporary: run the same command "
            "to try only these again."
        )
    return lines
