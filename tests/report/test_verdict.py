from __future__ import annotations

import math
from dataclasses import replace

import pytest

from clipcheck.gates.result import GateResult
from clipcheck.report.verdict import verdict, worst_first
from clipcheck.results.judgement import Judgement, Result
from tests.report import PASSED, failed, unjudged

A, B, GONE = replace(PASSED, checkpoint="a.pt"), failed("b.pt"), unjudged()
HALF = {"dtype": "float16"}
BESIDE = {"reference_checkpoint": "other.pt", "reference": "eager of other.pt"}


def failing(name: str, *margins: float) -> Judgement:
    gates = (
        GateResult(name=f"gate-{n}", passed=False, message="", margin=m)
        for n, m in enumerate(margins, 1)
    )
    return replace(PASSED, checkpoint=name, gates=(*PASSED.gates, *gates))


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ((), "NOT JUDGED: nothing was checked."),
        ((A,), "CONSISTENT: 1 checkpoint agrees between JIT and eager."),
        ((A, PASSED), "CONSISTENT: 2 checkpoints agree between JIT and eager."),
        ((A, replace(A, **HALF)), "CONSISTENT: 2 runs agree between JIT and eager."),
        ((A, replace(A, backend="trace")), "CONSISTENT: 2 runs agree with the eager model."),
        ((replace(A, **BESIDE),), "CONSISTENT: 1 checkpoint agrees with the reference."),
        ((GONE,), "NOT JUDGED: 1 checkpoint could not be judged."),
        ((A, GONE), "NOT JUDGED: 1 of 2 checkpoints could not be judged, 1 passed."),
        ((GONE, GONE), "NOT JUDGED: 2 of 2 runs could not be judged."),
        (
            (B,),
            "INCONSISTENT: 1 checkpoint differs between JIT and eager. "
            "Worst: fidelity, 12x the limit.",
        ),
        (
            (A, B),
            "INCONSISTENT: 1 of 2 checkpoints differs between JIT and eager. "
            "Worst: b.pt: fidelity, 12x the limit.",
        ),
        (
            (B, replace(B, **BESIDE), replace(A, backend="trace"), GONE),
            "INCONSISTENT: 2 of 4 runs differ from the eager model, 1 could not be judged. "
            "Worst: b.pt, jit on cpu in float32: fidelity, 12x the limit.",
        ),
        (
            (A, replace(A, **HALF), replace(failing("a.pt", 2.0), dtype="bfloat16")),
            "INCONSISTENT: 1 of 3 runs differs between JIT and eager. "
            "Worst: a.pt, jit on cpu in bfloat16: gate-1, 2.0x the limit.",
        ),
        (
            (failing("a.pt", 2.0, 7e4), failing("b.pt", 9.0)),
            "INCONSISTENT: 2 of 2 checkpoints differ between JIT and eager. "
            "Worst: a.pt: gate-2, 70k x the limit.",
        ),
        (
            (failing("a.pt", 7e4, 0.0), failing("b.pt", math.inf)),
            "INCONSISTENT: 2 of 2 checkpoints differ between JIT and eager. Worst: a.pt: gate-2.",
        ),
        (
            (replace(A, gates=()),),
            "INCONSISTENT: 1 checkpoint differs between JIT and eager. Worst: judged by no gate.",
        ),
    ],
)
def test_it_counts_runs_and_names_the_worst(
    judgements: tuple[Judgement, ...], expected: str
) -> None:
    assert verdict(Result(judgements, {})) == expected


def test_the_worst_comes_first_and_what_passed_last() -> None:
    near, far = failing("near.pt", 1.5), failing("far.pt", 3.0, 1.1)
    assert worst_first([A, GONE, near, far]) == [far, near, GONE, A]


def test_a_name_moves_no_cursor() -> None:
    assert r"Worst: \x1b[2J.pt: fidelity" in verdict(Result((A, failed("\x1b[2J.pt")), {}))
