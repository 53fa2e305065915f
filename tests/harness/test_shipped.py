"""Programs in the layouts that people ship, through a whole check: sound, and with a fault."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from benchmarks import layouts
from benchmarks.layouts import Images, Layout, Texts, broken, example, onnx_file
from clipcheck.checkpoints.opening import open_subject
from clipcheck.families import eager
from clipcheck.report import inspection
from clipcheck.report.text import render
from clipcheck.results.judgement import Judgement, Result
from clipcheck.system import torchscript_support
from clipcheck.testing import check
from clipcheck.writers.library import write_folder
from tests.families.conformance import built
from tests.families.test_transformers import architecture_of
from tests.thorough import parametrize


@pytest.fixture(scope="module")
def reference(archive: Path) -> Path:
    return archive


@pytest.fixture(scope="module")
def immich(model: eager.CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(layouts.immich(model, tmp_path_factory.mktemp("immich")))


def run(name: str | Path, reference: Path | None, **how: Any) -> Result:
    given = {"device": "cpu", "isolation": "none", "examples": 3, **how}
    return check(str(name), reference=reference, **given)


def one(name: str | Path, reference: Path | None, **how: Any) -> Judgement:
    (found,) = run(name, reference, **how).judgements
    return found


def failed(found: Judgement) -> set[str]:
    return {gate.name for gate in found.gates if not gate.passed}


@parametrize("layout", layouts.LAYOUTS)
def test_a_sound_layout_passes_and_one_with_a_changed_weight_fails(
    layout: Layout, model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    how = {"budget": layout.budget, "map": layout.names}
    sound = one(layout.write(model, tmp_path / "sound"), reference, **how)
    assert sound.error is None
    assert sound.passed, [gate.message for gate in sound.gates if not gate.passed]
    path = layout.write(broken(model, layout.steps), tmp_path / "broken")
    altered = one(path, reference, **how)
    assert altered.error is None
    assert failed(altered) & {"weights", "integrity", "fidelity", "precision"}


def test_weights_that_are_stored_in_fewer_bits_are_rounded_in_the_reference_too(
    model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    path = layouts.stored_in_bfloat16(model, tmp_path)
    found = one(path, reference, select=["integrity", "fidelity"])
    assert found.passed, [gate.message for gate in found.gates]
    assert "37 weights correctly rounded to bfloat16; " in found.gates[0].message
    assert found.dtype == "float32"


class HalfImages(torch.nn.Module):
    """The image tower with its weights in half precision, each cast to float32."""

    def __init__(self, model: eager.CLIP) -> None:
        super().__init__()
        self.visual = copy.deepcopy(model.visual).half()

    def forward(self, image: Tensor) -> Tensor:
        weights = {key: each.float() for key, each in self.visual.state_dict().items()}
        found: Tensor = torch.func.functional_call(self.visual, weights, (image,))
        return found


@pytest.mark.thorough
@parametrize("name", ["model.pt2", "model.pt"], quick=1)
def test_weights_stored_in_half_are_rounded_in_the_reference_of_torch_programs_too(
    name: str, model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    module, image = HalfImages(model).eval(), example(model, 2, 3, torch.int64)["image"]
    if name == "model.pt2":
        torch.export.save(torch.export.export(module, (image,)), tmp_path / name)
    else:
        with torchscript_support.silenced(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            program = torch.export.export(module, (image,)).module()
            torch.jit.save(torch.jit.trace(program, (image,), check_trace=False), tmp_path / name)
    found = one(tmp_path / name, reference, select=["integrity", "fidelity"])
    assert found.error is None
    assert found.passed, [gate.message for gate in found.gates]
    assert "weights correctly rounded to float16; " in found.gates[0].message


class Bfloat16(Images):
    """The image tower in bfloat16."""

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.model.visual(image.bfloat16())
        return found


@pytest.mark.thorough
@parametrize("dtype", ["bfloat16", "float32"], quick=1)
def test_a_program_in_bfloat16_takes_pixels_of_either_dtype(
    dtype: str, model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    module = Bfloat16(copy.deepcopy(model).bfloat16()).eval()
    image = example(model, 2, 3, torch.int64)["image"].to(getattr(torch, dtype))
    torch.export.save(torch.export.export(module, (image,)), tmp_path / "model.pt2")
    found = one(tmp_path / "model.pt2", reference, select=["integrity", "precision"])
    assert (found.error, found.dtype) == (None, "bfloat16")
    assert found.passed, [gate.message for gate in found.gates]


@pytest.mark.thorough
def test_onnx_in_bfloat16_is_refused_with_its_remedy(
    model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx_file(Bfloat16(copy.deepcopy(model).bfloat16()), path, ["image"], ["image_features"])
    found = one(path, reference)
    assert "opening the program failed" in str(found.error)
    assert "It computes in bfloat16" in str(found.remedy)


def test_the_report_says_what_was_taken_for_what(immich: Path, reference: Path) -> None:
    result = run(immich, reference)
    told = " ".join(render(result).split())
    assert "embedding -> text features, normalised" in told
    assert "text -> ids (int32)" in told
    assert "runs batches of 1 image and 1 text only. For any number, export it with" in told
    assert "missing" not in told
    (found,) = run(immich, reference, require="dynamic-batch").judgements
    (integrity,) = [gate for gate in found.gates if not gate.passed]
    assert integrity.message == "runs batches of 1 image and 1 text only"


def test_what_a_program_does_not_give_is_not_judged(
    immich: Path, model: eager.CLIP, reference: Path
) -> None:
    found = one(immich / "visual/model.onnx", reference)
    assert found.passed
    assert found.absent == ("text_features", "logits_per_image", "logits_per_text")
    judging = {"integrity", "fidelity", "modules", "repeatability"}
    assert {gate.name for gate in found.gates} == judging


@parametrize(("meaning", "most"), [("colours", "1"), ("levels", "255")])
def test_other_pixels_are_suggested_and_never_assumed(
    meaning: str, most: str, model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    module = {"colours": layouts.Colours, "levels": layouts.Pictures}[meaning]
    path = tmp_path / "model.onnx"
    onnx_file(module(model), path, ["image"], ["image_features"])
    found = one(path, reference)
    assert "fidelity" in failed(found)
    assert found.mapping[-1] == (
        f"its image features agree when it is given colours from 0 to {most}: "
        f"if so, add --map image={meaning}"
    )
    assert one(path, reference, map=f"image={meaning}").passed
    # Another fault is not explained so.
    onnx_file(Unprojected(model), path, ["image"], ["image_features"])
    assert not any("--map" in line for line in one(path, reference).mapping)


class Halved(Images):
    """Divides by half of the norm."""

    def forward(self, image: Tensor) -> Tensor:
        return 2 * super().forward(image)


class Unprojected(Images):
    def forward(self, image: Tensor) -> Tensor:
        visual = copy.deepcopy(self.model.visual)
        visual.proj = torch.nn.Parameter(torch.eye(len(visual.proj)))
        return visual(image)


class OfTheWrongAxis(Images):
    def forward(self, image: Tensor) -> Tensor:
        features = self.model.encode_image(image)
        return features / features.norm(dim=0, keepdim=True)


@parametrize("fault", [Unprojected, Halved, OfTheWrongAxis], quick=1)
def test_another_end_of_a_tower_fails(
    fault: type[Images], model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx_file(fault(model, unit=fault is Halved), path, ["image"], ["embedding"])
    assert "fidelity" in failed(one(path, reference))


@pytest.mark.thorough
def test_a_matrix_without_a_name_that_is_off_by_little_is_not_the_files(
    model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx_file(Images(model), path, ["image"], ["embedding"])
    program = onnx.load(path)
    matrices = [each for each in program.graph.initializer if "MatMul" in each.name]
    values = onnx.numpy_helper.to_array(matrices[-1]).copy()
    values.flat[0] += 1e-6
    matrices[-1].CopyFrom(onnx.numpy_helper.from_array(values, matrices[-1].name))
    onnx.save(program, path)
    found = one(path, reference)
    assert "integrity" in failed(found)
    assert "other bits than the file" in found.gates[0].message


def test_half_precision_is_judged_as_such_without_a_flag(
    model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    path = layouts.half_inside(model, tmp_path)
    found = one(path, reference)
    assert found.dtype == "float16"
    assert found.passed
    refused = one(path, reference, dtype="float32")
    assert refused.error is not None
    assert "expected a program that computes in float32, found float16" in refused.error
    assert "Leave --dtype out" in refused.error


@pytest.mark.thorough
def test_two_programs_in_one_sandbox(immich: Path, reference: Path) -> None:
    found = one(immich, reference, isolation="process")
    assert found.passed
    assert found.isolation


def test_all_files_of_both_towers_are_inspected_and_hashed(
    model: eager.CLIP, tmp_path: Path
) -> None:
    both = Path(layouts.immich(model, tmp_path / "both"))
    for tower in ("visual", "textual"):
        file = both / tower / "model.onnx"
        onnx.save(onnx.load(file), file, save_as_external_data=True, location="model.onnx.data")
    subject = open_subject(both)
    assert len(subject.files) == 4
    told = inspection.render(subject)
    assert "textual/model.onnx.data (" in told
    assert "of all 4 files" in told
    data = both / "textual/model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\1")
    assert open_subject(both).sha256 != subject.sha256


def test_a_file_that_changes_while_it_is_read_is_refused(
    model: eager.CLIP, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipcheck.harness import matrix

    path = Path(layouts.fastembed(model, tmp_path))
    judge = matrix.judge_candidate

    def judged(*arguments: Any, **how: Any) -> Any:
        path.write_bytes(path.read_bytes())
        return judge(*arguments, **how)

    monkeypatch.setattr(matrix, "judge_candidate", judged)
    found = one(path, reference)
    assert found.error is not None
    assert "model.onnx changed while it was read" in found.error


def _moved(immich: Path, folder: Path) -> str:
    shutil.copytree(immich, folder / "one")
    (folder / "one/textual/model.onnx").unlink()
    return str(folder / "one")


def _several(immich: Path, folder: Path) -> str:
    for name in ("vision_model", "text_model"):
        tower = "visual" if name == "vision_model" else "textual"
        for ending in (".onnx", "_quantized.onnx"):
            shutil.copy(immich / tower / "model.onnx", folder / f"{name}{ending}")
    return str(folder)


def _third(immich: Path, folder: Path) -> str:
    shutil.copytree(immich, folder / "one")
    shutil.copy(immich / "visual/model.onnx", folder / "one/model.onnx")
    return str(folder / "one")


def _swapped(immich: Path, _: Path) -> str:
    return f"image={immich}/textual/model.onnx,text={immich}/visual/model.onnx"


def _no_program(immich: Path, folder: Path) -> str:
    (folder / "text.onnx").write_bytes(b"no program")
    return f"image={immich}/visual/model.onnx,text={folder}/text.onnx"


BAD = [
    (_moved, {}, "found visual/model.onnx and none whose name begins with textual"),
    (_several, {}, "found several: vision_model.onnx and text_model.onnx; vision_model_quantized"),
    (_third, {}, "found visual/model.onnx and textual/model.onnx, and besides model.onnx"),
    (_swapped, {}, "expected a program of the image tower, found one without an input for pixels"),
    (_no_program, {}, "expected a program of the text tower, found a file without one"),
    (
        lambda immich, _: f"{immich}/visual/model.onnx",
        {"map": "none=image_features"},
        "--map none=image_features: the program has no output 'none'",
    ),
    (
        lambda immich, _: f"{immich}/visual/model.onnx",
        {"map": "none=pixels"},
        "--map none=pixels: the program has no input 'none'",
    ),
]


def test_a_mapping_is_for_programs(reference: Path) -> None:
    found = one(reference, None, map="x=pixels")
    assert "found a checkpoint (archive)" in (found.error or "")


@pytest.mark.parametrize(("write", "how", "told"), BAD)
def test_files_that_cannot_be_two_towers_are_not_judged(
    write: Callable[[Path, Path], str],
    how: dict[str, str],
    told: str,
    immich: Path,
    reference: Path,
    tmp_path: Path,
) -> None:
    result = run(write(immich, tmp_path), reference, **how)
    (found,) = result.judgements
    assert told in (found.error or "")
    assert result.exit_code == 2


@pytest.mark.thorough
def test_towers_of_different_models_are_recognised_by_their_weights_and_fail(
    model: eager.CLIP, immich: Path, reference: Path, tmp_path: Path
) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.transformer.parameters():
            parameter.mul_(1.5)
    onnx_file(Texts(other), tmp_path / "text.onnx", ["text"], ["embedding"], ids=torch.int32)
    found = one(f"image={immich}/visual/model.onnx,text={tmp_path}/text.onnx", reference)
    assert {"integrity", "fidelity"} <= failed(found)


def test_a_pair_needs_a_reference(immich: Path) -> None:
    found = one(immich, None)
    assert "expected the checkpoint that these programs were made from" in (found.error or "")


@pytest.mark.thorough
def test_a_program_with_several_equal_outputs_is_judged_by_the_named_one(
    model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    class Twice(Images):
        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            features = super().forward(image)
            return features, 2 * features

    path = tmp_path / "model.onnx"
    onnx_file(Twice(model), path, ["image"], ["a", "b"])
    assert "could each be the image features" in (one(path, reference).error or "")
    assert one(path, reference, map="a=image_features").passed
    assert not one(path, reference, map="b=image_features").passed


def _traced(module: torch.nn.Module, path: Path, given: Tensor) -> Path:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that are burnt in, and of tracing at all
        torch.jit.save(torch.jit.trace(module.eval(), given, check_trace=False), path)
    return path


def _frozen(path: Path, frozen: Path) -> Path:
    with torchscript_support.silenced():
        torch.jit.save(torch.jit.freeze(torch.jit.load(path).eval()), frozen)
    return frozen


@pytest.fixture(scope="module")
def towers(model: eager.CLIP, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return archives of the image tower alone: unaltered, and frozen."""
    folder = tmp_path_factory.mktemp("towers")
    pixels = example(model, 2, 3, torch.int64)["image"]
    path = _traced(model.visual, folder / "visual.pt", pixels)
    return path, _frozen(path, folder / "frozen.pt")


def test_an_archive_of_one_tower_is_judged_by_what_its_forward_gives(
    towers: tuple[Path, Path], reference: Path
) -> None:
    asked = one(towers[0], reference)
    assert "its input 'x' is not a known input of a CLIP model" in (asked.error or "")
    found = one(towers[0], reference, map="x=pixels")
    assert found.passed, found
    assert "weights bit for bit those of the file" in found.gates[0].message
    assert found.mapping == ("x -> pixels (float32)", "output 1 -> image features")


def test_a_frozen_archive_is_judged_by_its_outputs(
    towers: tuple[Path, Path], model: eager.CLIP, reference: Path, tmp_path: Path
) -> None:
    assert one(towers[1], reference, map="x=pixels").passed
    assert "--reference CHECKPOINT" in (one(towers[1], None).error or "")
    pixels = example(model, 2, 3, torch.int64)["image"]
    path = _traced(broken(model).visual, tmp_path / "visual.pt", pixels)
    frozen = _frozen(path, tmp_path / "frozen.pt")
    assert "fidelity" in failed(one(frozen, reference, map="x=pixels"))


@pytest.mark.thorough
def test_an_archive_of_one_tower_runs_in_a_sandbox(
    towers: tuple[Path, Path], reference: Path
) -> None:
    found = one(towers[0], reference, map="x=pixels", isolation="process")
    assert found.passed
    assert found.isolation


@pytest.mark.thorough
def test_the_logits_of_two_towers_are_made_as_the_family_makes_them(tmp_path: Path) -> None:
    architecture = architecture_of("siglip")
    model = built(architecture)
    write_folder(architecture, tmp_path / "siglip")
    names = (("pixel_values", "vision_model"), ("input_ids", "text_model"))
    for module, (given, file) in zip((Images(model), Texts(model)), names, strict=True):
        onnx_file(module, tmp_path / f"onnx/{file}.onnx", [given], ["pooler_output"])
    found = one(tmp_path / "onnx", tmp_path / "siglip")
    assert found.passed, found.error
    assert "logits: computed from both features by the reference" in found.mapping
    assert {"allclose", "top1"} <= {gate.name for gate in found.gates}
