from __future__ import annotations

import re
from dataclasses import replace

from clipcheck.gates.alternative import Departure
from clipcheck.gates.modules import Coverage
from clipcheck.gates.result import GateResult
from clipcheck.report.failure import SCREEN, failure, one_line_reason, reason_left_out, summary
from clipcheck.results.judgement import Judgement, Result
from tests.report import PASSED, failed, unjudged

JUDGED = Judgement(
    checkpoint="RN50 (seeded weights)",
    path="/tmp/RN50.pt",
    device="cuda",
    dtype="float16",
    gates=(
        GateResult(name="integrity", passed=True, message="all weights the same"),
        GateResult(name="allclose", passed=False, message="probabilities differ"),
    ),
)


def test_a_gate_that_failed_says_what_of_and_why() -> None:
    assert failure(JUDGED, "allclose") == (
        "RN50 (seeded weights), jit on cuda in float16: allclose\nprobabilities differ"
    )


def test_one_line_has_only_the_reason() -> None:
    assert one_line_reason("a.pt: allclose\nprobabilities\n  differ") == "probabilities differ"


def test_that_it_computes_as_another_architecture_is_in_the_summary() -> None:
    gelu = {"text": Departure("GELU", "QuickGELU")}
    other = replace(JUDGED, alternative=gelu, assumed=True)
    told = summary(Result((other,), {"clipcheck": "0"}))
    assert "  equals: this candidate uses GELU in the text tower, judged as" in told


def test_an_escape_sequence_in_a_name_is_shown_and_not_sent() -> None:
    named = replace(JUDGED, checkpoint="\x1b[31m.pt")
    assert failure(named, "allclose").startswith(r"\x1b[31m.pt, jit on cuda in float16: allclose")


def test_a_gate_that_passed_says_nothing() -> None:
    assert failure(JUDGED, "integrity") == ""


def test_a_gate_that_was_not_judged_has_not_passed() -> None:
    assert failure(JUDGED, "top1") == (
        "RN50 (seeded weights), jit on cuda in float16: top1\n"
        "expected a result of this gate, but it did not run"
    )


def test_what_could_not_be_judged_says_why_whatever_gate_is_asked_for() -> None:
    unjudged = replace(JUDGED, error="RN50.pt: cut off. Fetch it again.")
    for gate in ("integrity", "allclose"):
        assert failure(unjudged, gate) == (
            "RN50 (seeded weights), jit on cuda in float16: not judged\n"
            "RN50.pt: cut off. Fetch it again."
        )
    unread = replace(unjudged, dtype="")
    assert failure(unread, "top1").startswith("RN50 (seeded weights), jit on cuda: not judged")


def test_a_summary_begins_with_the_worst_and_fits_a_screen() -> None:
    result = Result((PASSED, unjudged(), failed("bad.pt")), {})
    lines = summary(result).splitlines()
    assert lines[:5] == [
        "INCONSISTENT: 1 of 3 checkpoints differs between JIT and eager, 1 could not be",
        "judged. Worst: bad.pt: fidelity, 12x the limit.",
        "",
        "bad.pt, jit on cpu in float32",
        "  fidelity: 12 times further",
    ]
    assert lines[-3:] == [
        "",
        "gone.pt, jit on cpu",
        "  not judged: expected a file, found 'gone.pt'. Look again.",
    ]
    many = summary(Result(tuple(failed(f"{n}.pt") for n in range(9)), {})).splitlines()
    assert len(many) == SCREEN
    assert re.fullmatch(r"\.\.\. and \d+ more lines", many[-1])


def test_a_summary_moves_no_cursor() -> None:
    assert "\x1b" not in summary(Result((failed("\x1b[2J.pt", prompt="\x1b[1m"),), {}))


def test_gates_of_logits_have_nothing_to_judge_in_a_file_that_gives_none() -> None:
    features = replace(PASSED, absent=("logits_per_image", "logits_per_text"))
    for gate in ("allclose", "top1"):
        assert (
            reason_left_out(features, gate) == f"release/model.pt has no logits, which {gate} needs"
        )
        assert reason_left_out(PASSED, gate) == ""
        assert reason_left_out(replace(PASSED, absent=("logits_per_text",)), gate) == ""
        assert reason_left_out(replace(features, error="not found"), gate) == ""
    for gate in ("integrity", "fidelity", "precision", "repeatability"):
        assert reason_left_out(features, gate) == ""
    hidden = replace(PASSED, gates=[], coverage=None)
    expected = f"release/model.pt does not show its modules in {PASSED.backend}"
    assert reason_left_out(hidden, "modules") == expected
    assert (
        reason_left_out(replace(hidden, coverage=Coverage(errors=[], skipped={})), "modules") == ""
    )
