"""Lines on a judgement in reports for machines and for GitHub."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from clipcheck.inputs.examples import listed
from clipcheck.report import agreement, alternative, patched
from clipcheck.report.cells import visible
from clipcheck.report.places import TOWERS, measured, named
from clipcheck.report.text import known_line, next_steps
from clipcheck.results.judgement import Judgement


def one_line(text: str) -> str:
    """The text on one line, without characters that are not for reading.

    Line ends become blanks, and what has no glyph (control characters, lone halves of surrogate
    pairs, marks that turn the direction of writing) becomes a backslash escape. What is left may
    stand in XML, too.
    """
    return visible(text.replace("\r\n", " ").replace("\n", " ").replace("\r", " "))


def evidence(judgement: Judgement) -> Iterator[str]:
    """Yield where it departs first, the input that it fails on, whether that matters, and known
    failures like it."""
    for place in judgement.departures:
        yield f"departs first in the {TOWERS[place.tower]}: {named(place)} ({measured(place)})"
    failing = judgement.failing_example
    if failing is not None:
        what = "smallest input" if failing.shrunk else "a batch"
        yield f"{what} that fails: {listed(failing.images, failing.prompts)}"
    alike = agreement.told([judgement])
    if alike:
        yield alike
    suspicion = "" if judgement.passed else patched.suspicion(judgement.patched)
    if suspicion:
        yield suspicion
    other = alternative.told(judgement)
    if other:
        yield other
    for known in judgement.known:
        yield f"known: {known_line(known)}"


def commands(judgement: Judgement) -> list[str]:
    """How to run the failing input again, and what to do next; nothing where it was not judged."""
    if judgement.error is not None:
        return []
    saved = judgement.saved
    again = [] if saved is None else [f"Again: clipcheck replay {shlex.quote(saved)}"]
    return [*again, *next_steps(judgement)]
