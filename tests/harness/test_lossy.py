"""A program in int8, from a file to a report."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import clipcheck
from clipcheck.backends import restored
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.gates.result import GateResult
from clipcheck.report.advice import next_steps
from clipcheck.report.html.page import page
from clipcheck.report.text import render
from clipcheck.results.document import read
from clipcheck.results.document import render as to_json
from clipcheck.results.judgement import Judgement, Result
from clipcheck.writers.programs import convert_to_program

MATRIX = "visual.transformer.resblocks.0.mlp.c_fc.weight"


@pytest.fixture(scope="module")
def program(minute_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lossy")
    convert_to_program(open_checkpoint(minute_archive), folder / "float.onnx", Format.ONNX)
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", weight_type=QuantType.QUInt8)
    return folder / "int8.onnx"


@pytest.fixture(scope="module")
def found(program: Path, minute_archive: Path) -> Result:
    return check(program, minute_archive, budget="cosine=0.9,spearman=0.5")


def check(program: Path, reference: Path, budget: str) -> Result:
    options = {"examples": 1, "device": "cpu", "isolation": "none"}
    return clipcheck.check(program, reference=reference, budget=budget, **options)  # type: ignore[arg-type]


def only(result: Result) -> Judgement:
    (judgement,) = result.judgements
    return judgement


def message(result: Result, name: str) -> str:
    (gate,) = (gate for gate in only(result).gates if gate.name == name)
    return gate.message


def test_a_sound_one_keeps_its_budget(found: Result) -> None:
    assert found.passed
    assert "weights quantised, within a step: " in message(found, "integrity")
    assert message(found, "fidelity").startswith("cannot fail with a budget; worst error")
    assert message(found, "budget").endswith("over 100 rows of random inputs")
    assert message(found, "repeatability").startswith("3 repeated calls, after other calls: ")


def test_reports_name_the_layers_that_cost_most(found: Result) -> None:
    layers = only(found).layers
    assert MATRIX in [each.weight for each in layers]
    assert [each.share for each in layers] == sorted((e.share for e in layers), reverse=True)
    assert 0 < layers[0].share < 1
    told = " ".join(render(found).split())
    assert f"of the error, removed by leaving the layer in float: {layers[0].weight}" in told
    assert "What to leave in float" in page(found)
    (record,) = read(to_json(found)).results
    assert (record.layers, record.budget) == (layers, "cosine=0.9,spearman=0.5")


def test_a_layer_that_does_not_run_in_float_is_reported(
    program: Path, minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise ValueError("no such operator")

    monkeypatch.setattr(restored, "with_weight_in_float", fail)
    found = check(program, minute_archive, "cosine=0.9")
    assert only(found).passed
    assert only(found).layers == ()
    problem = str(only(found).layers_problem)
    assert "running the program with a layer in float failed (no such operator)" in problem
    assert f"not measured {problem}" in " ".join(render(found).split())


def test_without_a_budget_it_fails_and_the_message_suggests_one() -> None:
    quantised = GateResult(
        name="integrity", passed=True, message="m", figures={"quantised": {"int8 by tensor": 3}}
    )
    failing = GateResult(name="fidelity", passed=False, message="m", margin=5.0)
    told = [
        " ".join(next_steps(Judgement("a.onnx", "cpu", gates=(quantised, failing), budget=budget)))
        for budget in (None, "int8")
    ]
    assert ["clipcheck check a.onnx --budget int8" in each for each in told] == [True, False]


def test_a_zero_point_that_is_off_by_one_fails(
    program: Path, minute_archive: Path, tmp_path: Path
) -> None:
    altered = onnx.load(program)
    matrices = [
        e.name
        for e in altered.graph.initializer
        if "out_proj.weight" in e.name and e.name.endswith("_zero_point")
    ]
    for each in altered.graph.initializer:
        if each.name == matrices[0]:
            moved = numpy_helper.to_array(each) - 1
            each.CopyFrom(numpy_helper.from_array(moved.astype("uint8"), each.name))
    onnx.save(altered, tmp_path / "off.onnx")
    found = check(tmp_path / "off.onnx", minute_archive, "cosine=0.5")
    assert [gate.name for gate in only(found).gates if not gate.passed] == ["integrity"]
    assert "quantised as uint8 by tensor, it is up to 1.5 steps from the file's" in message(
        found, "integrity"
    )
