"""The failure of a test whose checkpoint does not pass a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


class NotPassedError(AssertionError):
    """A checkpoint does not pass a gate.

    Args:
        text: for the test's failure, on several lines.
        line: one line, for pytest's summary.
    """

    def __init__(self, text: str, line: str) -> None:
        self.line = line
        super().__init__(text)


def shorten(
    report: pytest.TestReport, failure: pytest.ExceptionInfo[BaseException], line: str
) -> None:
    """Print the text of a failure without a traceback, and one line in the summary of the run.

    In CI, pytest would otherwise repeat the whole text in the summary.
    """
    representation = failure.getrepr(style="value")
    if representation.reprcrash is not None:
        representation.reprcrash.message = line
    report.longrepr = representation
