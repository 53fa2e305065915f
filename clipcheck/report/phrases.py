"""Lines about a judgement for JUnit, Markdown and annotations."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from clipcheck.inputs.examples import listed
from clipcheck.report import agreement, alternative, optimised, patched
from clipcheck.report.advice import next_steps
from clipcheck.report.cells import visible
from clipcheck.report.places import TOWERS, measured, named
from clipcheck.report.text import known_line
from clipcheck.results.judgement import Judgement


def one_line(text: str) -> str:
    """Put the text on one line, and escape unprintable characters.

    Line ends become blanks; control characters, lone surrogates and marks of writing direction
    become backslash escapes. The result is valid in XML.
    """
    return visible(text.replace("\r\n", " ").replace("\n", " ").replace("\r", " "))


def evidence(judgement: Judgement) -> Iterator[str]:
    """Yield where the candidate departs first, the part of its optimiser, the failing input, the
    agreement with float64, and known failures of the library."""
    for place in judgement.departures:
        yield f"departs first in the {TOWERS[place.tower]}: {named(place)} ({measured(place)})"
    yield from optimised.of_judgement(judgement)
    failing = judgement.failing_example
    if failing is not None:
        what = "smallest input" if failing.shrunk else "a batch"
        yield f"{what} that fails: {listed(failing.images, failing.prompts)}"
    alike = agreement.describe([judgement])
    if alike:
        yield alike
    suspicion = "" if judgement.passed else patched.suspicion(judgement.patched)
    if suspicion:
        yield suspicion
    other = alternative.describe(judgement)
    if other:
        yield other
    for known in judgement.known:
        yield f"known: {known_line(known)}"


def commands(judgement: Judgement) -> list[str]:
    """Return the commands for the failing input and the next step; none if it was not judged."""
    if judgement.error is not None:
        return []
    saved = judgement.saved
    again = [] if saved is None else [f"Again: clipcheck replay {shlex.quote(saved)}"]
    return [*again, *next_steps(judgement)]
