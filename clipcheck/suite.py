"""The promise, as tests: an archive and the eager model of its weights compute the same.

``pytest --pyargs clipcheck.suite --clip-model new.pt`` runs them in any folder. Without a
checkpoint it does not run. The summary says of each what was judged: a file, a released file, or
seeded weights, which are judged only where they are asked for (``--clip-seeded``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clipcheck.plugin.failing import NotPassedError
from clipcheck.report.failure import failure, in_a_line, left_out

if TYPE_CHECKING:
    from clipcheck.results.judgement import Judgement


def test_gate(clip_judgement: Judgement, clip_gate: str) -> None:
    """The checkpoint passes that gate."""
    reason = left_out(clip_judgement, clip_gate)
    if reason:
        pytest.skip(reason)
    problem = failure(clip_judgement, clip_gate)
    if problem:
        raise NotPassedError(problem, in_a_line(problem))
