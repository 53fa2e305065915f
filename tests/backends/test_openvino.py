"""Programs of OpenVINO are judged, and the precision that they really compute in is reported."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import clipcheck
from clipcheck.backends.openvino import _computes
from clipcheck.checkpoints.artefacts import kind_of
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.opening import open_pair, open_subject
from clipcheck.errors import CheckpointError, UsageError
from clipcheck.report.text import render
from clipcheck.writers.convert import write
from clipcheck.writers.programs import convert_to_program
from tests.samples import MINUTE, minute_weights

openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive and an OpenVINO program with the same weights."""
    folder = tmp_path_factory.mktemp("openvino")
    weights = {k: t.float() if t.is_floating_point() else t for k, t in minute_weights().items()}
    write(MINUTE, weights, folder / "model.pt", Format.ARCHIVE)
    convert_to_program(open_checkpoint(folder / "model.pt"), folder / "model.onnx", Format.ONNX)
    model = openvino.Core().read_model(folder / "model.onnx")
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def check(program: Path, **options: Any) -> clipcheck.Result:
    return clipcheck.check(program, examples=4, device="cpu", isolation="none", **options)


@pytest.mark.thorough
def test_a_program_is_judged_in_float32_by_default(program: Path) -> None:
    assert kind_of(program) is Format.OPENVINO
    result = check(program)  # against the archive beside it
    assert result, render(result)
    (judgement,) = result.judgements
    assert judgement.backend == "openvino"
    assert judgement.mapping[0] == "OpenVINO computes in f32; products: 12 in f32"
    assert "weights bit for bit those of the file" in judgement.gates[0].message


@pytest.mark.thorough
def test_the_default_precision_of_a_cpu_is_named(program: Path) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    result = check(program, backend="openvino:precision=default")
    (judgement,) = result.judgements
    told = "OpenVINO computes in bf16, its default on this CPU; products: 12 in bf16"
    assert judgement.mapping[0] == told
    assert told in " ".join(render(result).split())
    (fidelity,) = [each for each in judgement.gates if each.name == "fidelity"]
    assert fidelity.margin > 1000
    told_off = judgement.optimised
    assert told_off is not None
    assert (told_off.level, told_off.passes) == ("optimised", ("INFERENCE_PRECISION_HINT",))
    assert told_off.line == (
        'core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})'
    )
    assert told_off.rewrites is None
    assert told_off.reason == "OpenVINO does not tell which operations it replaced"
    assert check(program, backend="openvino:precision=bf16", budget="bf16")


def node(kind: str, precision: str) -> Any:
    info = {"layerType": kind, "runtimePrecision": precision}
    return SimpleNamespace(get_rt_info=lambda: info)


@pytest.mark.parametrize(
    ("hint", "products", "wanted", "doubts"),
    [
        ("f32", ["f32", "f32"], "f32", []),
        ("bf16", ["bf16"], "f32", ["OpenVINO computes in bf16 in place of f32"]),
        ("f32", ["f32", "bf16"], "f32", ["OpenVINO computes in bf16 in place of f32"]),
        ("f32", ["f32"], "bf16", ["OpenVINO computes in f32 in place of bf16"]),
        ("bf16", ["bf16"], "default", []),
    ],
)
def test_another_precision_than_requested_is_a_doubt(
    hint: str, products: list[str], wanted: str, doubts: list[str]
) -> None:
    graph = SimpleNamespace(get_ops=lambda: [node("MatMul", each) for each in products])
    compiled = SimpleNamespace(
        get_property=lambda _: SimpleNamespace(get_type_name=lambda: hint),
        get_runtime_model=lambda: graph,
    )
    assert _computes(compiled, wanted)[1] == doubts


@pytest.mark.thorough
def test_a_program_without_its_weights_is_refused(program: Path, tmp_path: Path) -> None:
    shutil.copy(program, tmp_path / "model.xml")
    with pytest.raises(CheckpointError, match=r"in model.bin, found no such file"):
        open_subject(tmp_path / "model.xml")
    shutil.copy(program.with_suffix(".bin"), tmp_path / "model.bin")
    # Its own weights are no reference.
    with pytest.raises(UsageError, match=r"found none of model.safetensors, model.pt, model.pth\."):
        open_pair(tmp_path / "model.xml")


@pytest.mark.thorough
def test_a_file_that_others_made_runs_in_the_sandbox(program: Path) -> None:
    result = clipcheck.check(program, examples=4, device="cpu")
    assert result, render(result)
    assert result.judgements[0].isolation
    pair = f"image={program},text={program}"
    both = clipcheck.check(pair, reference=program.with_suffix(".pt"), examples=4, device="cpu")
    assert both, render(both)
