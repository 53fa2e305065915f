from __future__ import annotations

from dataclasses import replace

import pytest

from clipcheck.checking import Judgement, Result
from clipcheck.compare.result import GateResult
from clipcheck.report.text import WIDTH, render, verdict

PASSED = Judgement(
    checkpoint="model.pt",
    path="model.pt",
    device="cpu",
    sha256="ab" * 32,
    description="archive, tiny-vit",
    dtype="float32",
    seconds={"load": 0.24, "run": 1.26},
    examples=8,
    gates=(
        GateResult("integrity", True, "77 weights the same"),
        GateResult("contract", True, "probabilities agree"),
    ),
)
FAILED = replace(
    PASSED, gates=(PASSED.gates[0], GateResult("contract", False, "probabilities differ"))
)
UNJUDGED = Judgement(checkpoint="gone.pt", device="cpu", error="gone.pt: not found. Look again.")


def result(*judgements: Judgement) -> Result:
    return Result(judgements, {})


def test_a_report_reads_as_follows() -> None:
    assert render(result(PASSED)) == "\n".join(
        [
            "model.pt",
            "  archive, tiny-vit",
            f"  SHA-256 {'ab' * 32}",
            "  which is none of the released files",
            "  jit against eager on cpu in float32; 8 images; loaded in 0.2 s, ran in 1.3 s",
            "  pass  integrity  77 weights the same",
            "  pass  contract   probabilities agree",
            "",
            "CONSISTENT: 1 checkpoint the same both ways.",
        ]
    )


def test_what_failed_stands_out() -> None:
    assert "  FAIL  contract   probabilities differ" in render(result(FAILED))


def test_the_next_command_mends_the_code_or_looks_at_the_file() -> None:
    assert render(result(FAILED)).endswith(
        "INCONSISTENT: 1 checkpoint not the same both ways.\n"
        "Next: clipcheck convert model.pt -o mended.pt\n"
        "      writes an archive of the same weights whose code is known to compute as it should."
    )
    unsound = replace(
        FAILED, path="my model.pt", gates=(GateResult("integrity", False, "weights differ"),)
    )
    assert "Next: clipcheck inspect 'my model.pt'\n" in render(result(PASSED, unsound))
    assert "Next:" not in render(result(PASSED, UNJUDGED))


def test_an_error_is_told_in_place_of_gates() -> None:
    text = render(result(UNJUDGED))
    assert "  error            gone.pt: not found. Look again." in text
    assert "integrity" not in text


def test_a_released_file_is_named() -> None:
    assert "  which is the released RN50\n" in render(result(replace(PASSED, released="RN50")))


def test_long_messages_are_wrapped_and_keep_their_column() -> None:
    long = replace(PASSED, gates=(GateResult("contract", True, "word " * 40),))
    lines = render(result(long)).splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    assert sum(line.startswith(" " * 19 + "word") for line in lines) > 1


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ((PASSED, PASSED), "CONSISTENT: 2 checkpoints the same both ways."),
        ((FAILED,), "INCONSISTENT: 1 checkpoint not the same both ways."),
        ((FAILED, PASSED), "INCONSISTENT: 1 checkpoint not the same both ways, 1 passed."),
        ((UNJUDGED, PASSED), "NOT JUDGED: 1 checkpoint could not be judged, 1 passed."),
        (
            (FAILED, UNJUDGED),
            "INCONSISTENT: 1 checkpoint not the same both ways, 1 checkpoint could not be judged.",
        ),
        ((), "NOT JUDGED: nothing was checked."),
    ],
)
def test_the_verdict_says_it_all(judgements: tuple[Judgement, ...], expected: str) -> None:
    assert verdict(result(*judgements)) == expected
