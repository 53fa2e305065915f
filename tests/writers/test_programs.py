from __future__ import annotations

import logging
from pathlib import Path

import onnx
import pytest
import torch
from torch.export import ExportedProgram

from clipcheck.checkpoints.architecture import ARCHITECTURES, Architecture
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.errors import OutputError
from clipcheck.families import eager
from clipcheck.gates.result import OUTPUTS
from clipcheck.writers import programs
from clipcheck.writers.programs import (
    INPUTS,
    export,
    of_any_name,
    too_large_for_onnx,
    write_onnx,
    write_pt2,
)
from clipcheck.writers.synthesize import synthesize
from tests.samples import MINUTE, MINUTE_RESNET
from tests.thorough import thorough


def built(architecture: Architecture, dtype: torch.dtype = torch.float32) -> eager.CLIP:
    weights = synthesize(architecture)
    cast = {
        key: tensor.to(dtype) if tensor.dtype == torch.float16 else tensor
        for key, tensor in weights.items()
    }
    return eager.build(architecture, cast)


@pytest.fixture(scope="module")
def model() -> eager.CLIP:
    return built(MINUTE)


@pytest.fixture(scope="module")
def program(model: eager.CLIP) -> ExportedProgram:
    return export(model)


def test_a_program_holds_the_weights_of_the_model_themselves(
    model: eager.CLIP, program: ExportedProgram
) -> None:
    held = program.state_dict
    for key, tensor in model.state_dict().items():
        assert held[f"model.{key}"].data_ptr() == tensor.data_ptr()


def test_both_batches_are_of_any_size_from_one_on(program: ExportedProgram) -> None:
    sizes = program.range_constraints.values()
    assert [int(size.lower) for size in sizes] == [1, 1]


@pytest.mark.thorough
def test_writing_onnx_does_not_change_the_program(
    model: eager.CLIP, program: ExportedProgram, tmp_path: Path
) -> None:
    before = str(program.graph)
    write_onnx(model, tmp_path / "program.onnx", program)
    assert str(program.graph) == before


@pytest.mark.thorough
def test_it_can_be_exported_in_inference_mode(model: eager.CLIP, program: ExportedProgram) -> None:
    with torch.inference_mode():
        found = export(model)
    assert [str(node.target) for node in found.graph.nodes] == [
        str(node.target) for node in program.graph.nodes
    ]


@pytest.mark.thorough
def test_a_pt2_file_says_nothing_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    write_pt2(built(MINUTE), path)
    assert str(Path(eager.__file__).parents[2]).encode() not in path.read_bytes()
    assert torch.export.load(path).graph_signature.user_inputs == INPUTS


@pytest.mark.thorough
def test_a_pt2_file_may_have_any_name_and_torch_may_warn_of_others_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "program"
    write_pt2(built(MINUTE), path)
    logger = logging.getLogger("torch.export.pt2_archive._package")
    logger.addHandler(caplog.handler)  # torch's own do not propagate
    try:
        with of_any_name():
            torch.export.load(path)
        assert "ending in .pt2" not in caplog.text
        torch.export.load(path)
        assert "ending in .pt2" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.thorough
def test_warnings_about_unfolded_constants_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("onnxscript.optimizer._constant_folding")

    def exporting(*_: object, **__: object) -> None:
        logger.warning("Skipping constant folding for op %s with multiple outputs.", "Split")
        logger.warning("Something else.")

    monkeypatch.setattr(torch.onnx, "export", exporting)
    with pytest.raises(TypeError, match="gave nothing"):
        write_onnx(built(MINUTE), tmp_path / "program.onnx")
    told = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert told == ["Something else."]


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        pytest.param(MINUTE, torch.float32, id="vit"),
        thorough(MINUTE_RESNET, torch.float16, id="resnet"),
    ],
)
def test_an_onnx_file_is_valid_and_alone(
    architecture: Architecture, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "program.onnx"
    write_onnx(built(architecture, dtype), path)
    assert list(tmp_path.iterdir()) == [path]
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path).graph
    assert [each.name for each in graph.input] == list(INPUTS)
    assert [each.name for each in graph.output] == list(OUTPUTS)
    for each in [*graph.input, *graph.output]:
        assert each.type.tensor_type.shape.dim[0].dim_param


def test_weights_beyond_what_a_file_holds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(MINUTE)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    monkeypatch.setattr(programs, "_MOST", size - 1)
    with pytest.raises(OutputError, match=r"one ONNX file holds .* Write it in half precision"):
        write_onnx(model, tmp_path / "program.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "dtype", "fits"),
    [
        ("ViT-L/14@336px", "float32", True),
        ("RN50x64", "float32", False),
        ("RN50x64", "float16", True),
    ],
)
def test_which_released_models_fit_into_one_onnx_file(name: str, dtype: str, fits: bool) -> None:
    checkpoint = Checkpoint(
        path=Path("x"), format=Format.STATE_DICT, model=ARCHITECTURES[name], tensors={}
    )
    assert (too_large_for_onnx(checkpoint, dtype) is None) is fits
