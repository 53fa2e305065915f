from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
import xmlschema
from hypothesis import given

from clipcheck.report.junit import render
from clipcheck.results.judgement import Judgement, Result
from tests.report import (
    ENVIRONMENT,
    PASSED,
    failed,
    failing_result,
    several_backends,
    unjudged,
)
from tests.report.test_phrases import ANY_TEXT

SCHEMA = xmlschema.XMLSchema10(Path(__file__).with_name("data") / "junit.xsd")


def parsed(result: Result) -> Element:
    text = render(result)
    SCHEMA.validate(text)
    return ElementTree.fromstring(text.encode())


def test_there_is_a_case_for_each_checkpoint_backend_device_dtype_and_gate() -> None:
    root = parsed(failing_result())
    assert [(case.get("classname"), case.get("name")) for case in root.iter("testcase")] == [
        ("clipcheck", "integrity-release/model.pt-jit-cpu-float32"),
        ("clipcheck", "fidelity-release/model.pt-jit-cpu-float32"),
        ("clipcheck", "integrity-bad.pt-jit-cpu-float32"),
        ("clipcheck", "fidelity-bad.pt-jit-cpu-float32"),
        ("clipcheck", "judged-gone.pt-jit-cpu"),
    ]


def test_a_gate_that_failed_is_a_failure_with_its_message_and_evidence() -> None:
    root = parsed(failing_result())
    (failure,) = root.iter("failure")
    assert (failure.get("message"), failure.get("type")) == ("12 times further", "failure")
    assert failure.text is not None
    lines = failure.text.splitlines()
    assert lines[0] == "12 times further"
    assert lines[1].startswith("departs first in the text tower: transformer.resblocks.1")
    assert lines[2].startswith("smallest input that fails: ")
    assert lines[3] == "Again: clipcheck replay found/failing-inputs/bad"
    assert lines[4].startswith("Next: ")


def test_what_could_not_be_judged_is_an_error() -> None:
    root = parsed(failing_result())
    (error,) = root.iter("error")
    assert error.get("message") == "expected a file, found 'gone.pt'. Look again."


def test_no_gate_is_no_pass() -> None:
    root = parsed(Result((replace(PASSED, gates=()),), ENVIRONMENT))
    assert root.get("errors") == "1"


def test_the_counts_are_those_of_the_cases() -> None:
    root = parsed(failing_result())
    counts = ("tests", "failures", "errors")
    assert [root.get(name) for name in counts] == ["5", "1", "1"]
    assert [[suite.get(name) for name in counts] for suite in root] == [
        ["2", "0", "0"],
        ["2", "1", "0"],
        ["1", "0", "1"],
    ]


def test_the_time_of_a_judgement_is_in_seconds_and_counted_once() -> None:
    root = parsed(failing_result())
    assert root.get("time") == "3.500"
    assert [suite.get("time") for suite in root] == ["1.750", "1.750", "0.000"]
    assert [case.get("time") for case in root[0].iter("testcase")] == ["1.750", "0.000"]


def test_versions_and_the_file_are_properties() -> None:
    suite = parsed(failing_result())[0]
    found = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert found == {
        **ENVIRONMENT,
        "path": "release/model.pt",
        "sha256": "ab" * 32,
        "reference": "eager",
        "seed": "0",
        "examples": "8",
    }


def test_date_run_and_tool_are_there() -> None:
    dated = replace(PASSED, run="d4c1", date="2026-11-30T17:40:15Z")
    suite = parsed(Result((dated,), ENVIRONMENT))[0]
    assert suite.get("timestamp") == "2026-11-30T17:40:15Z"
    found = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert [found[name] for name in ("run", "date", "clipcheck")] == ["d4c1", dated.date, "0.1.0"]


def test_nothing_checked_is_valid_as_well() -> None:
    assert parsed(Result((), ENVIRONMENT)).get("tests") == "0"


@given(ANY_TEXT, ANY_TEXT)
def test_any_name_and_prompt_gives_valid_xml(name: str, prompt: str) -> None:
    judgements: tuple[Judgement, ...] = (failed(name, prompt), unjudged(name))
    parsed(Result(judgements, ENVIRONMENT))


def test_control_characters_are_spelled_out() -> None:
    root = parsed(Result((failed("a\x00\x1b\n<&>.pt"),), ENVIRONMENT))
    assert root[0].get("name") == r"a\x00\x1b <&>.pt, jit on cpu in float32"


def test_the_schema_refuses_invalid_xml() -> None:
    text = render(failing_result())
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        SCHEMA.validate(text.replace('time="1.750"', 'time="1.7500"'))


def test_what_was_left_out_is_skipped_and_fails_nothing() -> None:
    root = parsed(several_backends())
    assert [root.get(name) for name in ("tests", "failures", "errors")] == ["9", "1", "1"]
    last = root[-1]
    assert (last.get("name"), last.get("skipped"), last.get("failures")) == ("left out", "2", "0")
    first, second = last.iter("testcase")
    assert first.get("name") == "judged-release/model.pt-compile:mode=default-cpu-float32"
    assert second.get("name") == "judged-release/model.pt-compile:mode=default-cpu-float16"
    skipped = first.find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "there is no compiler"


def test_what_is_known_stands_with_the_failure_and_with_the_error() -> None:
    line = (
        "known: a sign is lost (transformers <6, https://example.org/issues/1). Take a newer one."
    )
    root = parsed(several_backends())
    for kind in ("failure", "error"):
        (found,) = root.iter(kind)
        assert found.text is not None
        assert line in found.text.splitlines()


def test_backends_of_one_checkpoint_are_suites_of_their_own() -> None:
    names = [suite.get("name") for suite in parsed(several_backends())]
    assert names[1] == "release/model.pt, transformers:attention=eager on cpu in float32"
    assert len(set(names)) == len(names) == 5
