"""Render a result as annotations, which GitHub Actions shows beside a job."""

from __future__ import annotations

from collections.abc import Iterator

from clipcheck.report.phrases import evidence, one_line
from clipcheck.report.verdict import worst_first
from clipcheck.results.judgement import Judgement, Result


def render(result: Result) -> list[str]:
    """Return a line for each judgement that did not pass, the worst first: GitHub shows ten."""
    return [
        f"::error title={_property(f'clipcheck: {each.title}')}::{_data(_lines(each))}"
        for each in worst_first(result.judgements)
        if not each.passed
    ]


def _lines(judgement: Judgement) -> Iterator[str]:
    if judgement.error is not None:
        yield f"could not be judged: {judgement.error}"
    else:
        failed = [gate.name for gate in judgement.gates if not gate.passed]
        yield f"does not pass {', '.join(failed)}" if failed else "it was judged by no gate"
    yield from evidence(judgement)


def _data(lines: Iterator[str]) -> str:
    """Escape the message of a workflow command."""
    return "%0A".join(one_line(line).replace("%", "%25") for line in lines)


def _property(text: str) -> str:
    """Escape a property of a workflow command, which ends at a comma or at two colons."""
    plain = one_line(text).replace("%", "%25")
    return plain.replace(":", "%3A").replace(",", "%2C")
