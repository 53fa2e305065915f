"""Programs that others made: names and order of inputs, and parts of the outputs."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from clipcheck.backends import aotinductor
from clipcheck.backends.base import Backend
from clipcheck.backends.export import Export
from clipcheck.backends.onnxruntime import ONNXRuntime
from clipcheck.backends.source import ProgramFile
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.artefacts import kind_of
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import ArchitectureError, RunError, UnsafeError, UsageError
from clipcheck.families import eager
from clipcheck.families.registry import sizes_of
from clipcheck.gates.result import in_form
from clipcheck.writers.programs import write_pt2
from clipcheck.writers.synthesize import architecture_named
from tests.backends.kept import CPU, artefact, assert_near, batch, expected, minute, source
from tests.samples import MINUTE, minute_weights


@pytest.fixture(scope="module")
def model() -> eager.CLIP:
    return eager.build(MINUTE, {key: tensor.float() for key, tensor in minute_weights().items()})


@pytest.fixture(scope="module")
def own(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX program as clipcheck writes it, under a name without meaning."""
    made = source(minute(built, Format.ARCHIVE), built, ONNXRuntime)
    ONNXRuntime.build(made).close()
    path = tmp_path_factory.mktemp("own") / "program.pt2"
    path.write_bytes(artefact(made).read_bytes())
    return path


def open_file(
    path: Path,
    architecture: Architecture = MINUTE,
    weights: dict[str, Tensor] | None = None,
    names: dict[str, str] | None = None,
) -> Backend:
    backend = ONNXRuntime if kind_of(path) is Format.ONNX else Export
    sizes = sizes_of(architecture)
    return backend.open_program(
        ProgramFile(
            path=path,
            device=CPU,
            dtype=None,
            sizes=sizes,
            weights=weights or {},
            options={},
            names=names or {},
        )
    )


class TheirForward(nn.Module):
    """The eager model with the interface of another project; subclasses have the `forward`."""

    def __init__(self, model: eager.CLIP) -> None:
        super().__init__()
        self.clip = model

    def both(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image, text = self.clip.encode_image(pixels), self.clip.encode_text(ids)
        return (*self.clip.logits(image, text), image, text)


class LikeTransformers(TheirForward):
    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        per_image, per_text, image, text = self.both(pixel_values, input_ids)
        text = text + 0 * attention_mask.sum()
        image, text = (each / each.norm(dim=-1, keepdim=True) for each in (image, text))
        return per_image, per_text, text, image


class LogitsAlone(TheirForward):
    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.both(image, text)[:2]


class FeaturesAlone(TheirForward):
    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.both(image, text)[2:]


class Twice(TheirForward):
    """Returns two outputs of the shape of image features."""

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        found = self.both(image, text)
        return (*found, 2 * found[2])


class ImageAlone(TheirForward):
    def forward(self, image: Tensor) -> Tensor:
        return self.clip.encode_image(image)


class More(TheirForward):
    def forward(self, image: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
        return self.both(image, text)[0] * temperature


IMAGES, TEXTS = (torch.export.Dim(name, min=1) for name in ("images", "texts"))


def exported(module: nn.Module, names: list[str], dtype: torch.dtype = torch.int64) -> Any:
    """Export a module that takes its inputs by name."""
    side, length = MINUTE.image_resolution, MINUTE.context_length
    pixels, ids = torch.zeros(2, 3, side, side), torch.zeros(3, length, dtype=dtype)
    known = {
        "pixel_values": (pixels, {0: IMAGES}),
        "image": (pixels, {0: IMAGES}),
        "input_ids": (ids, {0: TEXTS}),
        "attention_mask": (torch.ones_like(ids), {0: TEXTS}),
        "text": (ids, {0: TEXTS}),
        "temperature": (torch.ones(1), None),
    }
    example = {name: known[name][0] for name in names}
    sizes = {name: known[name][1] for name in names}
    with torch.no_grad():
        return torch.export.export(module.eval(), (), example, dynamic_shapes=sizes, strict=False)


def saved_pt2(path: Path, module: nn.Module, names: list[str]) -> Path:
    torch.export.save(exported(module, names), path)
    return path


def saved_onnx(path: Path, module: nn.Module, names: list[str], outputs: list[str]) -> Path:
    program = torch.onnx.export(
        exported(module, names), dynamo=True, output_names=outputs, verbose=False
    )
    assert program is not None
    onnx.save(program.model_proto, path)
    return path


def outputs_of(backend: Backend, model: eager.CLIP) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the outputs of a backend and of the eager model for as many images as texts."""
    pixels, tokens = batch(MINUTE, 4, 4)
    return backend.outputs(pixels, tokens), expected(model, pixels, tokens)


@pytest.mark.thorough
def test_our_own_pt2_gives_all_outputs(model: eager.CLIP, tmp_path: Path) -> None:
    write_pt2(model, tmp_path / "own.pt2")
    backend = open_file(tmp_path / "own.pt2", weights=model.state_dict())
    assert_near(*outputs_of(backend, model), atol=1e-6)
    assert backend.evidence().weights == len(model.state_dict())


def test_our_own_onnx_gives_all_outputs(model: eager.CLIP, own: Path) -> None:
    backend = open_file(own, weights=model.state_dict())
    assert backend.name == "onnxruntime"
    assert_near(*outputs_of(backend, model), atol=1e-5)
    assert backend.evidence().weights


@pytest.mark.thorough
def test_optimums_output_names_are_recognised(model: eager.CLIP, tmp_path: Path) -> None:
    names = ["input_ids", "pixel_values", "attention_mask"]
    outputs = ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    path = saved_onnx(tmp_path / "theirs.onnx", LikeTransformers(model), names, outputs)
    backend = open_file(path)
    found, wanted = outputs_of(backend, model)
    assert_near(found, dict(in_form(wanted, backend.normalised)), atol=1e-5)
    assert backend.mapping[3:5] == (
        "image_embeds -> image features, normalised",
        "text_embeds -> text features, normalised",
    )
    assert not backend.absent


def test_a_program_of_logits_alone_lacks_features(model: eager.CLIP, tmp_path: Path) -> None:
    path = saved_pt2(tmp_path / "theirs.pt2", LogitsAlone(model), ["image", "text"])
    backend = open_file(path)
    found, wanted = outputs_of(backend, model)
    logits = ("logits_per_image", "logits_per_text")
    assert_near(found, {name: wanted[name] for name in logits}, atol=1e-6)
    assert backend.absent == {"image_features", "text_features"}
    with pytest.raises(RunError, match="export: the program gives no image_features"):
        backend.encode_image(batch(MINUTE, 1, 1)[0])


@pytest.mark.thorough
def test_a_program_of_features_alone_lacks_logits(model: eager.CLIP, tmp_path: Path) -> None:
    path = saved_onnx(
        tmp_path / "theirs.onnx", FeaturesAlone(model), ["image", "text"], ["one", "two"]
    )
    backend = open_file(path)
    found, wanted = outputs_of(backend, model)
    features = ("image_features", "text_features")
    assert_near(found, {name: wanted[name] for name in features}, atol=1e-5)
    assert backend.absent == {"logits_per_image", "logits_per_text"}
    with pytest.raises(RunError, match="onnxruntime: the program gives no logits_per_image"):
        backend(*batch(MINUTE, 1, 1))


@pytest.mark.thorough
def test_ambiguous_outputs_are_mapped_by_the_user(model: eager.CLIP, tmp_path: Path) -> None:
    path = saved_pt2(tmp_path / "theirs.pt2", Twice(model), ["image", "text"])
    with pytest.raises(UsageError, match="outputs output 3 and output 5 could each be the image"):
        outputs_of(open_file(path), model)
    found, wanted = outputs_of(open_file(path, names={"output 3": "image_features"}), model)
    assert_near(found, wanted, atol=1e-6)


def test_a_program_of_one_tower_is_judged_by_its_features(
    model: eager.CLIP, tmp_path: Path
) -> None:
    path = saved_pt2(tmp_path / "theirs.pt2", ImageAlone(model), ["image"])
    backend = open_file(path)
    found, wanted = outputs_of(backend, model)
    assert_near(found, {"image_features": wanted["image_features"]}, atol=1e-6)
    assert backend.gives("encode_image")
    assert not backend.gives("encode_text")


@pytest.mark.thorough
def test_an_input_that_no_clip_model_has_is_named(model: eager.CLIP, tmp_path: Path) -> None:
    path = saved_pt2(tmp_path / "theirs.pt2", More(model), ["image", "text", "temperature"])
    with pytest.raises(UsageError, match="its input 'temperature' is not a known input"):
        open_file(path)


def test_a_program_of_another_architecture_is_refused(own: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"\[any, 3, 16, 16\], expected \[any, 3, 32, 32\]"):
        open_file(own, architecture_named("tiny-vit"))


@pytest.mark.thorough
def test_a_program_is_run_at_its_fixed_batch_size(model: eager.CLIP, tmp_path: Path) -> None:
    side, length = MINUTE.image_resolution, MINUTE.context_length
    example = (torch.zeros(2, 3, side, side), torch.zeros(3, length, dtype=torch.int64))
    program = torch.export.export(LogitsAlone(model).eval(), example, strict=False)
    torch.export.save(program, tmp_path / "burnt.pt2")
    backend = open_file(tmp_path / "burnt.pt2")
    pixels, tokens = batch(MINUTE, 5, 4)
    found, wanted = backend.outputs(pixels, tokens), expected(model, pixels, tokens)
    logits = ("logits_per_image", "logits_per_text")
    assert_near(found, {name: wanted[name] for name in logits}, atol=1e-6)
    assert backend.batches == ((2, 3),)


def test_native_code_is_not_loaded_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "package.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/archive_format", "pt2")
        archive.writestr("package/data/aotinductor/model/x.so", "code")
    loaded = []

    def load(path: str) -> None:
        loaded.append(path)
        raise RuntimeError("not sound")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    with pytest.raises(UnsafeError, match="it is native code"):
        aotinductor.open_package(path, CPU, sizes_of(MINUTE), None)
    assert not loaded
    with pytest.raises(RunError, match=r"aotinductor: loading failed \(not sound\)"):
        aotinductor.AOTInductor.open_here(path, CPU, {})
    assert loaded == [str(path)]
