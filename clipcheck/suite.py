"""The test suite: each checkpoint passes each gate.

``pytest --pyargs clipcheck.suite --clip-model new.pt`` runs it in any folder; it needs a
checkpoint. The summary says what each checkpoint is: a file, a released file, or seeded weights
(only with ``--clip-seeded``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clipcheck.plugin.failing import NotPassedError
from clipcheck.report.failure import failure, one_line_reason, reason_left_out

if TYPE_CHECKING:
    from clipcheck.results.judgement import Judgement


def test_gate(clip_judgement: Judgement, clip_gate: str) -> None:
    """The checkpoint passes this gate."""
    reason = reason_left_out(clip_judgement, clip_gate)
    if reason:
        pytest.skip(reason)
    problem = failure(clip_judgement, clip_gate)
    if problem:
        raise NotPassedError(problem, one_line_reason(problem))
