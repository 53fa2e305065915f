"""The header and the final report of a run of pytest."""

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
    """Return one line with the checkpoints, devices, seed and threads of the run.

    Args:
        choices: the options of the run.
        count: number of workers; 0 without pytest-xdist.
        busy: how many of them compute at the same time.
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


def source_lines(findings: Sequence[Finding]) -> list[str]:
    """Return a line for each checkpoint: a given file, a released one, or seeded weights."""
    return sorted({f"{f.case.model} on {f.case.device}: {f.source}" for f in findings if f.source})


def final_report(findings: Sequence[Finding], choices: Choices) -> list[str]:
    """Return the table of gates and the verdict, and the details of each checkpoint that failed."""
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
    """Write all judgements as JSON and text, and the failing inputs.

    Raises:
        OutputError: the folder cannot be written to.
    """
    from clipcheck.report.evidence import keep

    keep(result, folder)
    return f"reports in {folder}"


def write_for_github(result: Result) -> tuple[list[str], str]:
    """Write the job's summary on GitHub Actions; elsewhere do nothing.

    Returns:
        Annotations to print, and the error of writing, or an empty string.
    """
    from clipcheck.report.github import annotate, summarise

    return annotate(result), summarise(result)
