from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from clipcheck.gates.localisation import Deviation, Place
from clipcheck.gates.result import GateResult
from clipcheck.inputs.examples import Example
from clipcheck.report.gate_table import cell
from clipcheck.report.lines import BAD, GOOD
from clipcheck.report.text import brief, render, report
from clipcheck.results.failing import Failing, Measure
from clipcheck.results.judgement import Judgement, Result
from clipcheck.system.width import WIDTH
from tests.report import several_backends

FLOAT32 = ("integrity", "allclose", "fidelity", "modules", "top1", "repeatability")
HALF = ("integrity", "allclose", "precision", "top1", "repeatability")
RERUN = ("clipcheck", "check", "model.pt", "--report", "clip-report")

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
        GateResult(name="integrity", passed=True, message="77 weights the same"),
        GateResult(name="allclose", passed=True, message="probabilities agree", margin=0.25),
    ),
)
FAILED = replace(
    PASSED,
    gates=(
        PASSED.gates[0],
        GateResult(name="allclose", passed=False, message="probabilities differ", margin=12.3),
    ),
)
UNSOUND = replace(
    FAILED,
    path="my model.pt",
    gates=(GateResult(name="integrity", passed=False, message="differ"),),
)
UNJUDGED = Judgement(
    checkpoint="gone.pt",
    device="cpu",
    error="gone.pt: not found. Look again.",
    remedy="Look again.",
)


def result(*judgements: Judgement) -> Result:
    return Result(judgements, {})


def lines_of(*judgements: Judgement) -> list[str]:
    return render(result(*judgements), rerun=RERUN).splitlines()


def table(*judgements: Judgement) -> list[str]:
    """Return the lines above the verdict."""
    return brief(result(*judgements)).plain.split("\n\n")[0].splitlines()


def margins(names: tuple[str, ...], margin: float) -> tuple[GateResult, ...]:
    return tuple(
        GateResult(name=name, passed=margin <= 1, message="found", margin=margin) for name in names
    )


def test_a_report_reads_as_follows() -> None:
    assert lines_of(PASSED) == [
        "model.pt",
        "  archive, tiny-vit",
        f"  SHA-256 {'ab' * 32}",
        "  not a released file",
        "  jit against eager on cpu in float32; 8 images; loaded in 0.2 s, ran in 1.3 s",
        "  pass  integrity      77 weights the same",
        "  pass  allclose       probabilities agree",
        "",
        "jit cpu float32  integrity  allclose",
        "model.pt         ok         ok 25%",
        "",
        "CONSISTENT: 1 checkpoint agrees between JIT and eager.",
        "Next: clipcheck check model.pt --report clip-report",
        "      writes a report to publish with the release.",
    ]


def test_the_place_of_the_model_in_the_file_is_below_its_kind() -> None:
    origin = "read from 'model'; left out: head.\x1b"
    lines = lines_of(replace(PASSED, origin=origin))
    assert lines[2] == "  read from 'model'; left out: head.\\x1b"


def test_the_run_and_its_inputs_are_described() -> None:
    made = {"run": "3f", "date": "2026-11-30T04:10:11Z"}
    run = replace(PASSED, inputs="ab" * 16, seed=7, **made)
    assert "  run 3f, 2026-11-30T04:10:11Z; inputs abababababab, seed 7" in lines_of(run)
    assert "  run 3f, 2026-11-30T04:10:11Z" in lines_of(replace(UNJUDGED, **made))


def test_failures_stand_out() -> None:
    assert "  FAIL  allclose       probabilities differ" in lines_of(FAILED)


def test_of_several_only_the_failed_ones_are_shown_in_full() -> None:
    assert lines_of(PASSED, replace(FAILED, checkpoint="bad.pt"))[:1] == ["bad.pt"]
    assert render(result(PASSED, FAILED)).count("SHA-256") == 1
    assert lines_of(PASSED, PASSED)[0] == "jit cpu float32  integrity  allclose"


def test_names_that_fit_stand_in_the_rows_below_the_way_that_all_share() -> None:
    assert table(PASSED, replace(FAILED, checkpoint="日本語.pt"), UNJUDGED) == [
        "jit cpu float32  integrity  allclose",
        "model.pt         ok         ok 25%",
        "日本語.pt        ok         FAIL 12x",
        "gone.pt          not judged",
    ]


def test_a_run_that_could_not_be_judged_keeps_its_dtype() -> None:
    half = replace(PASSED, dtype="float16", gates=(), error="not finite")
    assert table(half, PASSED) == [
        "                  integrity  allclose",
        "model.pt",
        " jit cpu float16  not judged",
        " jit cpu float32  ok         ok 25%",
    ]


def test_names_stand_above_the_rows_where_the_ways_differ_or_a_name_is_long() -> None:
    half = replace(PASSED, device="cuda:1", dtype="bfloat16", gates=margins(HALF, 0.5))
    assert table(replace(PASSED, gates=margins(FLOAT32, 0.5)), half, UNJUDGED) == [
        "                     integrity allclose fidelity  modules top1   repeatability",
        "                                        precision",
        "model.pt",
        " jit cpu float32     ok 50%    ok 50%   ok 50%    ok 50%  ok 50% ok 50%",
        " jit cuda:1 bfloat16 ok 50%    ok 50%   ok 50%    -       ok 50% ok 50%",
        "gone.pt",
        " jit cpu             not judged",
    ]
    long = table(replace(PASSED, checkpoint="long/" * 20 + "model.pt"))
    assert long[1].startswith("long/long/long/")
    assert long[1].endswith("/long/long/model.pt")
    assert cell_len(long[1]) == WIDTH
    assert long[2] == " jit cpu float32  ok         ok 25%"


@pytest.mark.parametrize(
    ("passed", "margin", "expected"),
    [
        (True, 0.0, "ok"),
        (True, 0.004, "ok <1%"),
        (True, 0.25, "ok 25%"),
        (True, 1.0, "ok 100%"),
        (False, 1.0004, "FAIL 1.0x"),
        (False, 9.96, "FAIL 10x"),
        (False, 12.3, "FAIL 12x"),
        (False, 999.4, "FAIL 999x"),
        (False, 999.6, "FAIL 1.0k x"),
        (False, 52_000.0, "FAIL 52k x"),
        (False, 9.4e9, "FAIL 9.4G x"),
        (False, 1e300, "FAIL >999T x"),
        (False, math.inf, "FAIL"),
        (False, math.nan, "FAIL"),
        (False, 0.0, "FAIL"),
    ],
)
def test_a_cell_shows_the_share_of_the_limit(passed: bool, margin: float, expected: str) -> None:
    assert cell(GateResult(name="allclose", passed=passed, message="", margin=margin)) == expected
    assert len(expected) <= 13


def test_the_next_command_mends_the_code_or_looks_at_the_file() -> None:
    assert render(result(FAILED)).endswith(
        "INCONSISTENT: 1 checkpoint differs between JIT and eager. Worst: allclose, 12x\n"
        "the limit.\n"
        "Next: clipcheck convert model.pt -o fixed.pt\n"
        "      writes an archive with the same weights and correct code."
    )
    assert "Next: clipcheck inspect 'my model.pt'\n" in render(result(PASSED, UNSOUND))
    assert "Next:" not in render(result(FAILED), rerun=RERUN, advise=False)


def test_the_next_command_takes_along_what_was_said_of_the_weights() -> None:
    told = replace(
        FAILED, asked_architecture="a", options={"key": "model_ema", "architecture": "gelu.json"}
    )
    assert (
        "Next: clipcheck convert model.pt --key model_ema --architecture gelu.json -o \\\n"
        "      fixed.pt\n"
    ) in render(result(told))


def test_a_report_is_suggested_where_none_is_kept() -> None:
    assert lines_of(FAILED)[-2:] == [
        "  or: clipcheck check model.pt --report clip-report",
        "      writes a report that shows what fails, and saves the failing input.",
    ]
    assert "--report" not in render(result(FAILED))
    assert "Next:" not in render(result(PASSED))


def test_the_remedy_of_the_only_error_comes_next_and_is_said_once() -> None:
    assert lines_of(UNJUDGED) == [
        "gone.pt",
        "  error                gone.pt: not found.",
        "",
        "NOT JUDGED: 1 checkpoint could not be judged.",
        "Next: Look again.",
    ]
    for judgements in ((UNJUDGED, UNJUDGED), (UNJUDGED, FAILED)):
        assert "  error                gone.pt: not found. Look again." in lines_of(*judgements)
        assert "Next: Look again." not in lines_of(*judgements)
    assert "Next:" not in render(result(UNJUDGED, UNJUDGED), rerun=RERUN)


def test_an_error_is_shown_in_place_of_gates() -> None:
    text = render(result(UNJUDGED), advise=False)
    assert "  error                gone.pt: not found. Look again." in text
    assert "integrity" not in text


def test_a_released_file_is_named() -> None:
    assert "  released as RN50\n" in render(result(replace(PASSED, released="RN50")))


def test_it_says_where_it_departs_first() -> None:
    places = [
        Place(
            tower="image",
            module="visual.bn1",
            part="",
            figures=Deviation(340.4, 10, 3.4e-4),
            given="a grey image",
        ),
        Place(tower="text", module=None),
        Place(
            tower="logits",
            module="forward",
            part="its end",
            figures=Deviation(math.inf),
            given="the prompt 'a'",
        ),
    ]
    told = lines_of(replace(FAILED, localisation=places))
    assert told[7:11] == [
        "  departs first        visual.bn1: error 3.4e-4, eager 1.0e-6 (340x, limit 10x);",
        "                       inputs: a grey image",
        "  departs first        forward, its end: not finite, of a different shape, or",
        "                       changed; inputs: the prompt 'a'",
    ]


def test_long_messages_are_wrapped_and_keep_their_column() -> None:
    long = replace(PASSED, gates=(GateResult(name="allclose", passed=True, message="word " * 40),))
    lines = lines_of(long)
    assert sum(line.startswith(" " * 23 + "word") for line in lines) > 1


def styled(text: Text, word: str) -> set[str]:
    """Return the styles of a word, wherever it is."""
    return {str(span.style) for span in text.spans if text.plain[span.start : span.end] == word}


def test_colours_follow_the_words() -> None:
    text = report(result(PASSED, FAILED))
    assert styled(text, "FAIL") == styled(text, "INCONSISTENT") == {BAD}
    assert styled(text, "pass") == styled(text, "ok") == {GOOD}
    assert styled(text, " 12x") == {"dim"}
    assert styled(report(result(PASSED)), "CONSISTENT") == {GOOD}
    assert styled(report(result(UNJUDGED)), "NOT JUDGED") == {"bold yellow"}


def test_a_brief_report_has_the_table_and_the_verdict() -> None:
    assert brief(result(FAILED)).plain.splitlines() == [
        "jit cpu float32  integrity  allclose",
        "model.pt         ok         FAIL 12x",
        "",
        "INCONSISTENT: 1 checkpoint differs between JIT and eager. Worst: allclose, 12x",
        "the limit.",
    ]


def test_the_brief_report_gives_each_reason_for_no_verdict_once() -> None:
    assert brief(result(UNJUDGED)).plain.splitlines() == [
        "  error                gone.pt: not found. Look again.",
        "",
        "NOT JUDGED: 1 checkpoint could not be judged.",
    ]
    found = brief(result(UNJUDGED, replace(UNJUDGED, checkpoint="b.pt"), PASSED))
    assert found.plain.splitlines()[4:] == [
        "",
        "  error                gone.pt, jit cpu and 1 more: gone.pt: not found. Look",
        "                       again.",
        "",
        "NOT JUDGED: 2 of 3 checkpoints could not be judged, 1 passed.",
    ]


NAMES = st.text(max_size=200) | st.text("ab/ \x1b[31m\n\u202e日❤\ufe0f\u0301'", max_size=200)
MARGINS = st.floats(min_value=0)


@st.composite
def judgements(draw: Callable[..., object]) -> Judgement:
    """Draw judgements with any names and figures: passing, failing and unjudged."""
    name = str(draw(NAMES))
    if draw(st.booleans()):
        return Judgement(name, str(draw(NAMES)), error=f"{name}: no. {name}", remedy=name)
    gates = tuple(
        GateResult(
            name=gate,
            passed=bool(draw(st.booleans())),
            message=str(draw(NAMES)),
            margin=draw(MARGINS),
        )  # type: ignore[arg-type]
        for gate in draw(st.sampled_from([FLOAT32, HALF, (*FLOAT32, *HALF, "another-gate", name)]))  # type: ignore[attr-defined]
    )
    prompt = str(draw(NAMES))
    measure = Measure("text_features", 9.0, 8.0, 0.1, f"text features of {prompt}")
    place = Place(
        tower="image", module=str(draw(NAMES)), part=prompt, figures=Deviation(draw(MARGINS))
    )  # type: ignore[arg-type]
    return replace(
        PASSED,
        checkpoint=name,
        path=draw(st.none() | NAMES),
        device=str(draw(st.sampled_from(["cpu", "cuda:1"]) | NAMES)),
        dtype=str(draw(st.sampled_from(["float32", "bfloat16"]))),
        gates=gates,
        failing=Failing(
            example=Example((), (prompt,)),
            measure=measure,
            shrunk=True,
            saved=draw(st.none() | NAMES),
        ),
        localisation=[place],
    )


@given(st.lists(judgements(), max_size=4))
def test_no_line_is_wider_than_80_cells_nor_moves_the_cursor(found: list[Judgement]) -> None:
    for text in (report(result(*found), rerun=RERUN), brief(result(*found))):
        for line in text.plain.split("\n"):
            assert cell_len(line) <= WIDTH
            assert line.isprintable()
            assert line == line.rstrip()


def test_backends_have_a_row_each_if_all_ran_on_one_device_and_dtype() -> None:
    assert brief(several_backends()).plain.splitlines() == [
        "cpu float32          integrity  fidelity",
        "release/model.pt",
        " jit                 ok         ok 37%",
        " transformers:eager  ok         FAIL 12x",
        " onnxruntime         not judged",
        " clip                ok         ok 37%",
        "",
        "  error                release/model.pt, onnxruntime cpu float32: expected a",
        "                       file, found 'release/model.pt'. Look again.",
        "",
        "  left out             compile:mode=default: there is no compiler",
        "",
        "INCONSISTENT: 1 of 4 runs differs from the eager model, 1 could not be judged.",
        "Worst: release/model.pt, transformers:attention=eager on cpu in float32:",
        "fidelity, 12x the limit.",
    ]


def test_a_backend_whose_name_is_long_has_the_room_that_the_gates_leave() -> None:
    long = replace(PASSED, backend="onnxruntime:optimization=basic,providers=device")
    *_, row = table(PASSED, replace(long, gates=margins(HALF, 0.5)))
    assert row.startswith(" onnxruntime:basic,device  ok 50%")
    *_, row = table(PASSED, replace(long, gates=margins(FLOAT32, 12_000.0)))
    assert row.startswith(" onnxr...asic,device  FAIL 12k x")
    assert cell_len(row) <= WIDTH


def test_of_several_backends_each_error_names_its_backend_and_known_failures() -> None:
    lines = render(several_backends()).splitlines()
    at = lines.index("  onnxruntime on cpu in float32")
    assert lines[at - 1 : at + 4] == [
        "release/model.pt",
        "  onnxruntime on cpu in float32",
        "  error                expected a file, found 'release/model.pt'. Look again.",
        "  known                a sign is lost (transformers <6,",
        "                       https://example.org/issues/1). Take a newer one.",
    ]


def test_a_known_failure_is_named_and_still_fails() -> None:
    text = render(several_backends())
    block = text[: text.index("\n\n")]
    assert "  FAIL  fidelity       12 times further\n" in block
    assert "  known                a sign is lost (transformers <6,\n" in block
    assert "transformers:attention=eager against eager of single.pt on cpu in float32" in block


def test_raw_inputs_are_reported_apart_from_the_verdict() -> None:
    text = render(several_backends())
    apart = text[text.index("Raw inputs (not part of the verdict):\n") :]
    assert apart.splitlines()[1:8] == [
        "preprocessing of transformers 5.24.0 (slow): 28 of 30 images the same; 1 differs",
        "  as known; 1 differs otherwise",
        "  known: on white: 1, such as RGBA 3x4",
        "    puts it on white",
        "    https://example.org/issues/1",
        "  otherwise: LA 1x1: 1 level apart",
        "not compared for clip: no vocabulary. Give one.",
    ]
    assert "Raw inputs" not in brief(several_backends()).plain


def test_a_fault_of_weights_or_of_another_backend_is_not_mended_by_another_archive() -> None:
    weights = GateResult(name="weights", passed=False, message="differ")
    assert "Next:" not in render(result(replace(FAILED, gates=(weights, *FAILED.gates))))
    assert "Next:" not in render(result(replace(FAILED, backend="trace")))


def test_six_gates_are_side_by_side_and_a_seventh_is_below() -> None:
    found = replace(PASSED, checkpoint="x" * 30, gates=margins(FLOAT32, 0.5))
    lines = table(found)
    assert len(lines) == 3
    assert lines[0].split() == list(FLOAT32)
    lines = table(replace(found, gates=margins(("weights", *FLOAT32), 0.5)))
    assert len(lines) == 6
    assert lines[0].split() == ["weights", *FLOAT32[:-1]]
    assert lines[3].split() == ["repeatability"]
