"""Messages of failing tests: for a checkpoint, and for one of its gates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipcheck.results.judgement import Judgement, Result

SCREEN = 24
"""Lines of a terminal."""


def summary(result: Result) -> str:
    """Summarise the failures on one screen: the verdict, then each failure, the worst first."""
    from clipcheck.report.cells import visible, wrapped
    from clipcheck.report.verdict import verdict, worst_first

    lines = wrapped(verdict(result))
    for judgement in worst_first(result.judgements):
        if not judgement.passed:
            lines += ["", *wrapped(judgement.title), *_found(judgement)]
    if len(lines) > SCREEN:
        lines = [*lines[: SCREEN - 1], f"... and {len(lines) - SCREEN + 1} more lines"]
    return "\n".join(map(visible, lines))


def _found(judgement: Judgement) -> Iterator[str]:
    from clipcheck.report.advice import departure_lines, doubt_lines
    from clipcheck.report.cells import wrapped
    from clipcheck.report.text import failing_lines

    if judgement.error is not None:
        yield from wrapped(judgement.error, "  not judged: ")
    for gate in judgement.gates:
        if not gate.passed:
            yield from wrapped(gate.message, f"  {gate.name}: ", "    ")
    yield from doubt_lines(judgement)
    yield from departure_lines(judgement)
    yield from failing_lines(judgement)


def reason_left_out(judgement: Judgement, gate: str) -> str:
    """Return why the gate does not judge this checkpoint, or an empty string if it does."""
    from clipcheck.gates.registry import gate_named
    from clipcheck.gates.result import LOGITS

    found = next((each for each in judgement.gates if each.name == gate), None)
    if found is not None and not found.judged:
        return f"{judgement.title}: {gate} is only measured: {found.message}"
    if judgement.error is not None or found is not None:
        return ""
    known = gate_named(gate)
    if known.needs_logits and set(LOGITS) <= set(judgement.absent):
        return f"{judgement.checkpoint} has no logits, which {gate} needs"
    if known.needs_modules and judgement.coverage is None:
        return f"{judgement.checkpoint} does not show its modules in {judgement.backend}"
    if known.needs_reference:
        return f"{judgement.checkpoint} has no weights to compare with the reference's"
    return ""


def failure(judgement: Judgement, gate: str) -> str:
    """Return what failed on a line, and why on the next; an empty string if the gate passed."""
    found = _failure(judgement, gate)
    if not found:
        return found
    # Imported here: runs in which all tests pass do not need it.
    from clipcheck.report.cells import visible_lines

    return visible_lines(found)


def one_line_reason(failure: str) -> str:
    """Return the reason of a failure as one line, without its headline."""
    return " ".join(failure.partition("\n")[2].split())


def _failure(judgement: Judgement, gate: str) -> str:
    headline = f"{judgement.title}: "
    if judgement.error is not None:
        return f"{headline}not judged\n{judgement.error}"
    found = next((each for each in judgement.gates if each.name == gate), None)
    if found is None:
        return f"{headline}{gate}\nexpected a result of this gate, but it did not run"
    return "" if found.passed else f"{headline}{gate}\n{found.message}"
