from __future__ import annotations

import json
from pathlib import Path

import clipcheck
from clipcheck.checking import Judgement, Result
from clipcheck.compare.result import GateResult
from clipcheck.report.json import render


def test_the_document_has_the_fields_of_schema_1(tiny_archive: Path) -> None:
    document = json.loads(render(clipcheck.check(tiny_archive, examples=2)))
    assert document.keys() == {"schema", "passed", "clipcheck", "environment", "results"}
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
