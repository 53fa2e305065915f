"""Messages of tests: for a checkpoint, and for a gate that it does not pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipcheck.results.judgement import Judgement, Result

SCREEN = 24
"""Lines of a terminal."""


def summary(result: Result) -> str:
    """Summarise the failures on one screen: the verdict, which names the worst failure, then each
    failure with its evidence, the worst first."""
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
    from clipcheck.report.cells import wrapped
    from clipcheck.report.text import departing_lines, doubting_lines, failing_lines

    if judgement.error is not None:
        yield from wrapped(judgement.error, "  not judged: ")
    for gate in judgement.gates:
        if not gate.passed:
            yield from wrapped(gate.message, f"  {gate.name}: ", "    ")
    yield from doubting_lines(judgement)
    yield from departing_lines(judgement)
    yield from failing_lines(judgement)


def left_out(judgement: Judgement, gate: str) -> str:
    """Why the gate has nothing to judge in this checkpoint, or nothing where it has."""
    from clipcheck.gates.registry import gate_named
    from clipcheck.gates.result import LOGITS

    if judgement.error is not None or any(each.name == gate for each in judgement.gates):
        return ""
    known = gate_named(gate)
    if known.needs_logits and set(LOGITS) <= set(judgement.absent):
        return f"{judgement.checkpoint} gives no logits, which {gate} judges"
    if known.needs_reference:
        return f"{judgement.checkpoint} holds no weights that can be compared with the reference's"
    return ""


def failure(judgement: Judgement, gate: str) -> str:
    """Say on two lines or more what did not pass and why; nothing where the gate passed."""
    found = _failure(judgement, gate)
    if not found:
        return found
    # Here, for a run whose tests all pass has no use for it.
    from clipcheck.report.cells import visible_lines

    return visible_lines(found)


def in_a_line(failure: str) -> str:
    """Return the reason of a failure, without the line that says what did not pass."""
    return " ".join(failure.partition("\n")[2].split())


def _failure(judgement: Judgement, gate: str) -> str:
    headline = f"{judgement.title}: "
    if judgement.error is not None:
        return f"{headline}not judged\n{judgement.error}"
    found = next((each for each in judgement.gates if each.name == gate), None)
    if found is None:
        return f"{headline}{gate}\nexpected what this gate found, but it was not judged"
    return "" if found.passed else f"{headline}{gate}\n{found.message}"
