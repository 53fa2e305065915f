"""A result as annotations: lines that GitHub Actions shows beside a job."""

from __future__ import annotations

from collections.abc import Iterator

from clipcheck.report.phrases import evidence, one_line
from clipcheck.report.verdict import worst_first
from clipcheck.results.judgement import Judgement, Result


def render(result: Result) -> list[str]:
    """A line for each judgement that did not pass, the worst first: GitHub shows ten of a step."""
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
        yield f"does not pass {', '.join(failed)}" if failed else "no gate has judged it"
    yield from evidence(judgement)


def _data(lines: Iterator[str]) -> str:
    """As the runner wants the text of a command: it turns these three back."""
    return "%0A".join(one_line(line).replace("%", "%25") for line in lines)


def _property(text: str) -> str:
    """As it wants a property, which ends at a comma or at two colons."""
    plain = one_line(text).replace("%", "%25")
    return plain.replace(":", "%3A").replace(",", "%2C")
