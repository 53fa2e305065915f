from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

import clipcheck
from clipcheck.gates.localisation import Deviation, Place
from clipcheck.gates.result import GateResult
from clipcheck.report import text
from clipcheck.results.document import read, render, result_of
from clipcheck.results.judgement import Judgement, Result
from clipcheck.sweep.found import SweepDocument
from tests.report import KNOWN, failing_result, several_backends

SAMPLE = Path(__file__).with_name("data") / "results-1.json"
"""Written by the first version of schema 1. It stays as it is: what is valid once is valid."""


def schema() -> Any:
    file = resources.files("clipcheck.results") / "schema" / "results-1.json"
    return json.loads(file.read_text(encoding="utf-8"))


def require_valid(document: Any) -> None:
    jsonschema.Draft202012Validator(schema()).validate(document)


@pytest.fixture(scope="module")
def found(minute_archive: Path) -> Result:
    """Return the result of a sound archive and of a missing one."""
    return clipcheck.check([minute_archive, "no-such-model"], examples=2)


@pytest.fixture(scope="module")
def passed(found: Result) -> Any:
    """Return the document of the sound archive alone."""
    return json.loads(render(replace(found, judgements=found.judgements[:1])))


def test_the_document_has_the_fields_of_schema_1(passed: Any, minute_archive: Path) -> None:
    document = passed
    assert document.keys() == {
        "schema", "passed", "clipcheck", "environment", "configuration", "results", "left_out"
    }  # fmt: skip
    assert document["left_out"] == []
    assert document["schema"] == 1
    assert document["passed"] is True
    assert document["clipcheck"] == clipcheck.__version__
    assert document["environment"].keys() >= {"torch", "torchvision", "numpy", "python"}
    (entry,) = document["results"]
    assert entry["checkpoint"] == str(minute_archive)
    assert len(entry["sha256"]) == 64
    assert (entry["backend"], entry["reference"]) == ("jit", "eager")
    assert (entry["device"], entry["dtype"], entry["examples"]) == ("cpu", "float32", 2)
    assert entry["origin"] is None
    assert entry["passed"] is True
    assert entry["error"] is None
    assert entry["seconds"].keys() >= {"load", "run"}
    assert [gate["name"] for gate in entry["gates"]] == [
        "integrity", "allclose", "fidelity", "modules", "top1", "repeatability"
    ]  # fmt: skip
    assert re.fullmatch("[0-9a-f]{32}", entry["inputs"])
    assert re.fullmatch("[0-9a-f]{12}", entry["run"])
    began = datetime.fromisoformat(entry["date"])
    assert timedelta() < datetime.now(UTC) - began < timedelta(hours=1)
    for gate in entry["gates"]:
        assert gate["passed"] is True
        assert gate["message"]
        assert 0 <= gate["margin"] <= 1
    assert entry["gates"][1]["figures"]["logits_per_image"]["max_abs"] >= 0


def test_a_checkpoint_that_could_not_be_judged_has_its_reason() -> None:
    result = clipcheck.check("no-such-model")
    document = json.loads(render(result))
    (entry,) = document["results"]
    assert document["passed"] is False
    assert entry["passed"] is False
    assert "no-such-model" in entry["error"]
    assert entry["gates"] == []


def test_numbers_that_json_cannot_write_are_null() -> None:
    figures = {"logits_per_image": {"max_abs": float("nan"), "atol": float("inf"), "rtol": 0.1}}
    judgement = Judgement(
        "x", "cpu", gates=(GateResult(name="allclose", passed=False, message="m", figures=figures),)
    )
    text = render(Result((judgement,), {"clipcheck": "0"}))
    gate = json.loads(text)["results"][0]["gates"][0]
    assert gate["figures"]["logits_per_image"] == {"max_abs": None, "atol": None, "rtol": 0.1}
    assert "NaN" not in text
    assert "Infinity" not in text


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_what_the_first_version_wrote_is_valid() -> None:
    document = json.loads(SAMPLE.read_text(encoding="utf-8"))
    assert [entry["passed"] for entry in document["results"]] == [True, False, False]
    assert document["results"][1]["failing_example"]
    assert document["results"][2]["error"]
    require_valid(document)


def test_a_document_with_more_fields_is_valid() -> None:
    document = json.loads(SAMPLE.read_text(encoding="utf-8"))
    document["more"] = document["results"][0]["more"] = {}
    document["results"][0]["gates"][0]["more"] = []
    require_valid(document)


def test_what_a_check_writes_is_valid(found: Result, minute_archive: Path) -> None:
    failing = clipcheck.check(minute_archive, examples=14, atol=0, rtol=0)
    assert failing.exit_code == 1
    for document in (
        render(found),
        render(failing),
        render(failing_result()),
    ):
        require_valid(json.loads(document))


def test_the_memory_is_in_bytes(passed: Any) -> None:
    assert passed["results"][0]["peak_memory"] > 1 << 27


def test_the_first_departure_in_each_tower_is_written() -> None:
    places = [
        Place(
            tower="image",
            module="visual.conv1",
            part="",
            figures=Deviation(30.0, 10.0, 0.5, "forward"),
            given="noise",
        ),
        Place(tower="text"),
    ]
    judgement = Judgement("x", "cpu", localisation=places)
    document = json.loads(render(Result((judgement,), {"clipcheck": "0"})))
    first, second = document["results"][0]["localisation"]
    assert first == {
        "tower": "image",
        "module": "visual.conv1",
        "part": "",
        "figures": {"rmse_ratio": 30.0, "allowed": 10.0, "rmse": 0.5, "method": "forward"},
        "given": "noise",
        "reason": "",
    }
    assert (second["tower"], second["module"]) == ("text", None)
    unknown = json.loads(render(Result((Judgement("x", "cpu"),), {"clipcheck": "0"})))
    assert unknown["results"][0]["localisation"] is None


def entry(document: Any) -> Any:
    return document["results"][0]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.update(schema=2),
        lambda document: document.pop("environment"),
        lambda document: document["environment"].update(torch=2.9),
        lambda document: entry(document).pop("gates"),
        lambda document: entry(document).update(passed="yes"),
        lambda document: entry(document)["gates"][0].update(margin="0.5"),
        lambda document: entry(document)["gates"][0].pop("message"),
        lambda document: entry(document).update(localisation=[{}]),
        lambda document: entry(document).update(peak_memory="1 GB"),
    ],
)
def test_a_document_of_another_form_is_not_valid(spoil: Callable[[Any], object]) -> None:
    document = json.loads(render(failing_result()))
    require_valid(document)
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        require_valid(document)


def test_the_document_of_several_backends_is_valid_and_complete() -> None:
    text = render(several_backends())
    document = json.loads(text)
    require_valid(document)
    jit, slow, broken, shy = document["results"]
    assert [each["artefact_bytes"] for each in (jit, slow)] == [1000, None]
    assert jit["reference_checkpoint"] is None
    assert (slow["reference"], slow["reference_checkpoint"]) == ("eager of single.pt", "single.pt")
    named = {
        "title": "a sign is lost",
        "link": KNOWN.link,
        "remedy": "Take a newer one.",
        "packages": ["transformers"],
        "versions": "<6",
    }
    assert slow["known"] == broken["known"] == [named]
    assert (slow["passed"], jit["known"]) == (False, [])
    (preprocessing,) = slow["preprocessing"]
    assert (preprocessing["kind"], preprocessing["compared"], preprocessing["same"]) == (
        "image",
        30,
        28,
    )
    assert preprocessing["known"]["on white"]["count"] == 1
    assert preprocessing["unknown"][0]["unlike"]["figures"] == {"levels": 1.0, "share": None}
    assert shy["preprocessing_problem"] == "clip: no vocabulary. Give one."
    assert document["left_out"][0] == {
        "checkpoint": "release/model.pt",
        "backend": "compile:mode=default",
        "device": "cpu",
        "dtype": "float32",
        "reason": "there is no compiler",
    }


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document["left_out"][0].pop("reason"),
        lambda document: document["results"][1]["known"][0].pop("link"),
        lambda document: document["results"][1]["preprocessing"][0].update(kind="sound"),
        lambda document: document["results"][1]["preprocessing"][0]["known"]["on white"].pop(
            "count"
        ),
        lambda document: document["results"][1]["preprocessing"][0]["unknown"][0].pop("unlike"),
        lambda document: document["results"][1].update(reference_checkpoint=1),
        lambda document: document["results"][0].update(artefact_bytes=-1),
    ],
)
def test_a_field_of_a_backend_that_is_of_another_form_is_not_valid(
    spoil: Callable[[Any], object],
) -> None:
    document = json.loads(render(several_backends()))
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        require_valid(document)


def resolved(part: Any, whole: Any) -> Any:
    return whole["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def types(part: Any, whole: Any) -> Any:
    """What a part of a schema says of types, and the same of all that is in it.

    A number may be null, which stands for NaN and infinities.
    """
    part = resolved(part, whole)
    kinds, inside = set(), {}
    for each in part.get("oneOf") or part.get("anyOf") or [part]:
        each = resolved(each, whole)
        values = each.get("enum") or [each["const"]] if {"enum", "const"} & each.keys() else []
        kinds |= {{str: "string", int: "integer"}[type(value)] for value in values}
        named = each.get("type", [])
        kinds |= {named} if isinstance(named, str) else set(named)
        if "anyOf" in each:
            kinds |= types(each, whole)[0]
        inside |= {n: types(p, whole) for n, p in each.get("properties", {}).items()}
        for name in ("items", "additionalProperties"):
            if each.get(name):
                inside[name] = types(each[name], whole)
    if "number" in kinds:
        kinds -= {"integer", "null"}
    return kinds, inside


def test_the_schema_has_the_fields_of_the_classes_each_of_their_types() -> None:
    told, written = schema(), msgspec.json.schema(SweepDocument)
    assert types(told, told) == types(written, written)


@pytest.mark.parametrize("result", [failing_result(), several_backends()], ids=["one", "several"])
def test_what_is_read_back_is_reported_and_written_as_it_was(result: Result) -> None:
    written = render(result)
    again = result_of(read(written))
    assert render(again) == written
    assert text.render(again) == text.render(result)
