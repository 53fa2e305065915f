"""The promise, as tests: an archive and the eager model of its weights compute the same.

``pytest --pyargs clipcheck.suite --clip-model new.pt`` runs them in any folder. Released names
stand for the released files where they are in the cache, and for seeded weights elsewhere; the
summary of the run tells which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clipcheck.report.failure import failure

if TYPE_CHECKING:
    from clipcheck.judgement import Judgement


def test_gate(clip_judgement: Judgement, clip_gate: str) -> None:
    """The checkpoint passes that gate."""
    problem = failure(clip_judgement, clip_gate)
    if problem:
        pytest.fail(problem, pytrace=False)
