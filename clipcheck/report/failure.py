"""What a test says of a gate that a checkpoint does not pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipcheck.judgement import Judgement


def failure(judgement: Judgement, gate: str) -> str:
    """Why the gate is not passed and what to do next, or nothing where it is."""
    found = _failure(judgement, gate)
    if not found:
        return found
    # Here, for a run whose tests all pass has no use for it.
    from clipcheck.report.cells import visible_lines

    return visible_lines(found)


def _failure(judgement: Judgement, gate: str) -> str:
    headline = (
        f"{judgement.checkpoint}, {judgement.backend} on {judgement.device} in {judgement.dtype}: "
    )
    if judgement.error is not None:
        return f"{headline}not judged\n{judgement.error}"
    found = next((each for each in judgement.gates if each.name == gate), None)
    if found is None:
        return f"{headline}{gate}\nexpected what this gate found, but it was not judged"
    if found.passed:
        return ""
    # Here, for it imports numpy, which a run whose tests all pass has no use for until it judges.
    from clipcheck.report.text import departing_lines, failing_lines, next_steps

    evidence = [
        *departing_lines(judgement),
        *failing_lines(judgement),
        *next_steps(judgement),
    ]
    return "\n".join([f"{headline}{gate}", found.message, *evidence])
