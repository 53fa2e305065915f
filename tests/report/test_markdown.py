from __future__ import annotations

from dataclasses import replace

from hypothesis import given

from clipcheck.gates.result import GateResult
from clipcheck.report.markdown import escaped, render
from clipcheck.results.judgement import Result
from tests.report import (
    ENVIRONMENT,
    PASSED,
    failed,
    failing_result,
    several_backends,
    unjudged,
)
from tests.report.test_phrases import ANY_TEXT


def test_a_summary_reads_as_follows() -> None:
    assert render(failing_result()) == "\n".join(
        [
            "### ✗ clipcheck: INCONSISTENT: 1 of 3 checkpoints differs between JIT and eager, 1 "
            "could not be judged. Worst: bad.pt: fidelity, 12x the limit.",
            "",
            "| checkpoint | backend | device | dtype | integrity | fidelity |",
            "| --- | --- | --- | --- | --- | --- |",
            "| release/model.pt | jit | cpu | float32 | ✓ | ✓ 37 % of the limit |",
            "| bad.pt | jit | cpu | float32 | ✓ | ✗ 12x the limit |",
            "| gone.pt | jit | cpu |  | not judged | not judged |",
            "",
            "**bad.pt, jit on cpu in float32**",
            "",
            "- **fidelity**: 12 times further",
            "- departs first in the text tower: transformer.resblocks.1, the sum behind attn "
            "(error 0.5, eager 0.0042 (120x, limit 10x); inputs: the input that fails)",
            "- smallest input that fails: the image RGB 3x2, all (0, 0, 0), the prompt 'addo'",
            "",
            "```",
            "Again: clipcheck replay found/failing-inputs/bad",
            "Next: clipcheck convert bad.pt -o fixed.pt",
            "      writes an archive with the same weights and correct code.",
            "```",
            "",
            "**gone.pt, jit on cpu**",
            "",
            "- could not be judged: expected a file, found 'gone.pt'. Look again.",
            "",
        ]
    )


def test_what_passed_is_a_line_and_a_table() -> None:
    text = render(Result((PASSED,), ENVIRONMENT))
    assert text.startswith("### ✓ clipcheck: CONSISTENT: ")
    assert text.endswith("| ✓ 37 % of the limit |\n")


def test_there_is_a_column_for_each_gate_of_any_dtype() -> None:
    half = replace(
        PASSED, dtype="float16", gates=(GateResult(name="precision", passed=True, message="near"),)
    )
    lines = render(Result((PASSED, half), ENVIRONMENT)).splitlines()
    assert lines[2].endswith("| dtype | integrity | fidelity | precision |")
    assert lines[5].endswith("| float16 | not judged | not judged | ✓ |")


def test_what_markdown_would_take_for_its_own_is_escaped() -> None:
    assert escaped("a|b`c<d>e&f\ng") == r"a&#124;b\`c&lt;d&gt;e&amp;f g"
    assert escaped("*_~[]$#\\") == r"\*\_\~\[\]\$\#" + "\\\\"


@given(ANY_TEXT, ANY_TEXT)
def test_any_name_and_prompt_leaves_the_table_and_the_lines_as_they_are(
    name: str, prompt: str
) -> None:
    plain = render(Result((failed(), unjudged()), ENVIRONMENT)).splitlines()
    spoilt = render(Result((failed(name, prompt), unjudged(name)), ENVIRONMENT)).splitlines()
    assert [line.count("|") for line in spoilt[2:6]] == [7] * 4
    fences = [at for at, line in enumerate(plain) if line == "```"]
    fence = spoilt[fences[0]]
    assert set(fence) == {"`"}
    # A command of a long name goes on in the next line, so that the second fence may come later.
    assert [line for line in spoilt if line == fence] == [fence, fence]
    end = spoilt.index(fence, fences[0] + 1)
    assert len(spoilt[end:]) == len(plain[fences[1] :])
    for line in [*spoilt[4:6], *spoilt[7:12]]:
        assert "<" not in line


def test_a_fence_is_longer_than_those_in_the_code() -> None:
    text = render(Result((failed("````.pt"),), ENVIRONMENT))
    assert "\n`````\nAgain: " in text
    assert text.endswith("\n`````\n")


def test_backends_are_rows_and_what_was_left_out_comes_last() -> None:
    text = render(several_backends())
    assert "| release/model.pt | transformers:attention=eager | cpu | float32 | ✓ |" in text
    assert "| release/model.pt | onnxruntime | cpu | float32 | not judged | not judged |" in text
    assert text.endswith("\nLeft out:\n\n- compile:mode=default: there is no compiler\n")
    known = "- known: a sign is lost (transformers &lt;6, https://example.org/issues/1). Take"
    assert text.count(known) == 2
    assert "Left out" not in render(failing_result())
