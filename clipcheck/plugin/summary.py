"""Text that a run prints before it begins and when it is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.plugin.choices import Choices
from clipcheck.plugin.sharing import Finding
from clipcheck.system import workers
from clipcheck.system.figures import counted

if TYPE_CHECKING:
    from clipcheck.results.judgement import Result


def header(choices: Choices, count: int, busy: int) -> str:
    """One line: what is going to be judged, and what with.

    Args:
        choices: what is asked for.
        count: of the workers; 0 where there are none.
        busy: how many of them compute at a time.
    """
    models, devices = ", ".join(choices.models), ", ".join(choices.devices)
    return (
        f"clipcheck: {models} on {devices}; seed {choices.options.seed}; {_threads(count, busy)}; "
        f"torch {version('torch')}"
    )


def _threads(count: int, busy: int) -> str:
    busy = min(busy, count) if count else 1
    share = workers.own_threads(os.environ) or workers.threads(workers.cores(), busy)
    threads = counted(int(share), "thread")
    return f"{threads} in each of {counted(busy, 'busy worker')}" if count > 1 else threads


def lines(findings: Sequence[Finding]) -> list[str]:
    """Say of each checkpoint whether it was a file or seeded weights."""
    return sorted({f"{f.case.model} on {f.case.device}: {f.source}" for f in findings if f.source})


def told(findings: Sequence[Finding], choices: Choices) -> list[str]:
    """Return the table of all gates and the verdict, and once for each checkpoint that failed all
    that is known of it."""
    if not findings:
        return []
    from clipcheck.report.text import brief, report

    result = result_of(findings, choices)
    return ["", *(brief if result.passed else report)(result).plain.splitlines()]


def result_of(findings: Sequence[Finding], choices: Choices) -> Result:
    """Return all judgements of a run as one result."""
    from clipcheck.harness.checking import environment
    from clipcheck.results.judgement import Result

    judgements = tuple(finding.judgement for finding in findings)
    return Result(judgements, environment(), configuration=choices.configuration)


def write_reports(result: Result, folder: Path) -> str:
    """Write all judgements as JSON and as text, and the inputs that failed.

    Returns:
        Where they are, for people.

    Raises:
        OutputError: the folder cannot be written to.
    """
    from clipcheck.report.evidence import keep

    keep(result, folder)
    return f"reports in {folder}"


def tell_github(result: Result) -> tuple[list[str], str]:
    """Add what was found to the summary of the job; elsewhere than on GitHub Actions do nothing.

    Returns:
        Annotations, which are to be printed, and what went wrong, or nothing.
    """
    from clipcheck.report.github import annotate, summarise

    return annotate(result), summarise(result)
