"""A gate that a checkpoint does not pass, as a failing test."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class NotPassedError(AssertionError):
    """A checkpoint does not pass a gate.

    Args:
        text: what the test prints, on several lines.
        line: the same in one line, for the summary at the end of a run.
    """

    def __init__(self, text: str, line: str) -> None:
        self.line = line
        super().__init__(text)


def shorten(
    report: pytest.TestReport, failure: pytest.ExceptionInfo[BaseException], line: str
) -> None:
    """Print the text of a failure without a traceback, and the line in the summary of the run.

    Of text alone pytest would repeat all lines there, where it runs in CI.
    """
    representation = failure.getrepr(style="value")
    if representation.reprcrash is not None:
        representation.reprcrash.message = line
    report.longrepr = representation
