"""The promise: an archive and the eager model of its weights compute the same.

``--clip-model`` and ``--clip-device`` choose what is checked. Released names stand for the
released files where they are in the cache, and for seeded weights elsewhere; the summary of the
run tells which.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clipcheck.report.text import render
from clipcheck.suite import Subject

FLOAT32_GATES = ("integrity", "contract", "fidelity", "modules", "decision", "stability")


@pytest.fixture(autouse=True)
def _record_source(clip_subject: Subject, record_property: Callable[[str, object], None]) -> None:
    record_property("clip", clip_subject.source)


@pytest.mark.parametrize("name", FLOAT32_GATES)
def test_the_archive_passes_the_gate_in_float32(clip_subject: Subject, name: str) -> None:
    (judgement,) = (j for j in clip_subject.result.judgements if j.dtype == "float32")
    assert judgement.error is None, judgement.error
    (gate,) = (gate for gate in judgement.gates if gate.name == name)
    assert gate.passed, gate.message


def test_the_archive_passes_every_gate_in_every_dtype(clip_subject: Subject) -> None:
    assert clip_subject.result.passed, render(clip_subject.result)
