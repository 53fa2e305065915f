from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from clipcheck.gates.result import GateResult
from clipcheck.report.annotations import render
from clipcheck.results.judgement import Result
from tests.report import ENVIRONMENT, PASSED, failed, failing_result, unjudged
from tests.report.test_phrases import ANY_TEXT


def test_there_is_a_line_for_each_judgement_that_did_not_pass() -> None:
    assert render(failing_result()) == [
        "::error title=clipcheck%3A bad.pt%2C jit on cpu in float32::does not pass fidelity%0A"
        "departs first in the text tower: transformer.resblocks.1, the sum behind attn (error "
        "0.5, eager 0.0042 (120x, limit 10x); inputs: the input that fails)%0A"
        "smallest input that fails: the image RGB 3x2, all (0, 0, 0), the prompt 'addo'",
        "::error title=clipcheck%3A gone.pt%2C jit on cpu::could not be judged: expected a file, "
        "found 'gone.pt'. Look again.",
    ]
    assert render(Result((PASSED,), ENVIRONMENT)) == []


def test_no_gate_is_no_pass() -> None:
    (line,) = render(Result((replace(PASSED, gates=()),), ENVIRONMENT))
    assert line.endswith("::it was judged by no gate")


def test_what_the_runner_would_take_for_its_own_is_escaped() -> None:
    (line,) = render(Result((unjudged("50%0A,::x\n.pt"),), ENVIRONMENT))
    properties, data = line.removeprefix("::error ").split("::", 1)
    assert properties == "title=clipcheck%3A 50%250A%2C%3A%3Ax .pt%2C jit on cpu"
    assert "50%250A,::x" in data


@given(ANY_TEXT, ANY_TEXT)
def test_any_name_and_prompt_gives_one_line_that_is_read_back(name: str, prompt: str) -> None:
    for line in render(Result((failed(name, prompt), unjudged(name)), ENVIRONMENT)):
        assert len(line.splitlines()) == 1
        properties, data = line.removeprefix("::error title=").split("::", 1)
        assert not set(properties) & {":", ","}
        for part in (properties, data):
            left = part.replace("%25", "").replace("%3A", "").replace("%2C", "")
            assert "%" not in left.replace("%0A", "")


def test_the_worst_comes_first() -> None:
    near = replace(
        failed("near.pt"),
        gates=(GateResult(name="fidelity", passed=False, message="", margin=1.1),),
    )
    lines = render(Result((unjudged(), near, failed("far.pt")), {}))
    assert [line.split("%3A ")[1].split("%2C")[0] for line in lines] == [
        "far.pt", "near.pt", "gone.pt"
    ]  # fmt: skip
