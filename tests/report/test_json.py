from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import clipcheck
from clipcheck.compare.localisation import Localisation, Place
from clipcheck.compare.result import GateResult
from clipcheck.judgement import Judgement, Result
from clipcheck.report.json import render
from tests.report import failing_result

SAMPLE = Path(__file__).with_name("data") / "results-1.json"
"""Written by the first version of schema 1. It stays as it is: what is valid once is valid."""


def schema() -> Any:
    file = resources.files("clipcheck.report") / "schema" / "results-1.json"
    return json.loads(file.read_text(encoding="utf-8"))


def require_valid(document: Any) -> None:
    jsonschema.Draft202012Validator(schema()).validate(document)


def test_the_document_has_the_fields_of_schema_1(tiny_archive: Path) -> None:
    document = json.loads(render(clipcheck.check(tiny_archive, examples=2)))
    assert document.keys() == {
        "schema", "passed", "clipcheck", "environment", "results", "left_out"
    }  # fmt: skip
    assert document["left_out"] == []
    assert document["schema"] == 1
    assert document["passed"] is True
    assert document["clipcheck"] == clipcheck.__version__
    assert document["environment"].keys() >= {"torch", "torchvision", "numpy", "python"}
    (entry,) = document["results"]
    assert entry["checkpoint"] == str(tiny_archive)
    assert len(entry["sha256"]) == 64
    assert (entry["backend"], entry["reference"]) == ("jit", "eager")
    assert (entry["device"], entry["dtype"], entry["examples"]) == ("cpu", "float32", 2)
    assert entry["passed"] is True
    assert entry["error"] is None
    assert entry["seconds"].keys() >= {"load", "run"}
    assert [gate["name"] for gate in entry["gates"]] == [
        "integrity", "contract", "fidelity", "modules", "decision", "stability"
    ]  # fmt: skip
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
    judgement = Judgement("x", "cpu", gates=(GateResult("contract", False, "m", figures),))
    text = render(Result((judgement,), {"clipcheck": "0"}))
    gate = json.loads(text)["results"][0]["gates"][0]
    assert gate["figures"]["logits_per_image"] == {"max_abs": None, "atol": None, "rtol": 0.1}
    assert "NaN" not in text
    assert "Infinity" not in text


def test_the_schema_is_one() -> None:
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


def test_what_a_check_writes_is_valid(tiny_archive: Path) -> None:
    for document in (
        render(clipcheck.check([tiny_archive, "no-such-model"], examples=2)),
        render(clipcheck.check(tiny_archive, examples=2, atol=0, rtol=0)),
        render(failing_result()),
    ):
        require_valid(json.loads(document))


def test_the_memory_is_in_bytes(tiny_archive: Path) -> None:
    document = json.loads(render(clipcheck.check(tiny_archive, examples=2)))
    assert document["results"][0]["peak_memory"] > 1 << 27


def test_where_each_tower_departs_first_is_told() -> None:
    places = [
        Place("image", "visual.conv1", "", 30.0, 10.0, 0.5, "forward", "noise"),
        Place("text"),
    ]
    judgement = Judgement("x", "cpu", localisation=Localisation(places))
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
