"""Archives of a library's own model: judged whole and module by module, and localised."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipcheck.audit.faults.planting import put
from clipcheck.audit.small import small
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.library import LibraryArchitecture, own_of_transformers
from clipcheck.checkpoints.told import Told
from clipcheck.families.base import DualEncoder
from clipcheck.families.registry import family, sizes_of
from clipcheck.gates.localisation import Place
from clipcheck.harness.checking import check
from clipcheck.harness.localising import localize
from clipcheck.report.localisation import report
from clipcheck.results.judgement import Judgement
from clipcheck.system import torchscript_support
from clipcheck.writers.convert import write
from clipcheck.writers.directories import write_transformers
from clipcheck.writers.library import draw, write_folder
from clipcheck.writers.synthesize import synthesize
from conftest import unfolded
from tests.families.test_transformers import architecture_of
from tests.samples import MINUTE
from tests.thorough import parametrize

Fault = Callable[[Any], None]


def build(architecture: LibraryArchitecture, seed: int = 0) -> DualEncoder:
    return family(architecture.library).build(architecture, draw(architecture, seed))


def save(module: Any, path: Path) -> Path:
    with torchscript_support.silenced():
        torch.jit.save(module, path)
    return path


def traced(model: DualEncoder, architecture: LibraryArchitecture, path: Path) -> Path:
    """Trace as users of the library do: open_clip's three methods, transformers' ``forward``."""
    sizes = sizes_of(architecture)
    generator = torch.Generator().manual_seed(0)
    side, length = sizes.image_resolution, sizes.context_length
    pixels = torch.randn(2, 3, side, side, generator=generator)
    ids = torch.randint(sizes.texts.first, sizes.texts.last, (3, length), generator=generator)
    own = model.own()
    with torchscript_support.silenced(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if architecture.library == "open_clip":
            methods = {"encode_image": pixels, "encode_text": ids, "forward": (pixels, ids)}
            if model.forward_pairs:
                del methods["forward"]
            found = torch.jit.trace_module(own, methods, check_trace=False)
        else:
            own.config.return_dict = False  # type: ignore[union-attr]
            given = model.arguments(pixels, ids)
            names = ("input_ids", "pixel_values", "attention_mask")
            inputs = tuple(given[name] for name in names if name in given)
            # The others' own forward cannot do without the names of what their towers give.
            whole = own if type(own).__name__ == "SiglipModel" else InTuples(own)
            found = torch.jit.trace(whole, inputs, check_trace=False)
    return save(found, path)


class InTuples(nn.Module):
    """Returns a tuple of what a model of transformers returns by name.

    Args:
        model: the library's.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.config.return_dict = True
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        found = self.model(input_ids=input_ids, pixel_values=pixel_values, **mask)
        logits = found.logits_per_image, found.logits_per_text
        return (*logits, found.text_embeds, found.image_embeds)


def judged(archive: Path, reference: Path, **options: Any) -> Judgement:
    result = check(archive, reference=reference, examples=2, isolation="none", **options)
    (found,) = result.judgements
    return found


def failed(judgement: Judgement) -> set[str]:
    assert judgement.error is None
    return {gate.name for gate in judgement.gates if not gate.passed}


def message(judgement: Judgement, gate: str) -> str:
    return next(each.message for each in judgement.gates if each.name == gate)


def places(judgement: Judgement) -> list[tuple[str | None, str]]:
    assert judgement.localisation is not None
    return [_named(each) for each in judgement.localisation if each.module is not None]


def _named(place: Place) -> tuple[str | None, str]:
    return place.module, place.part


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of open_clip with open_clip's own towers."""
    path = tmp_path_factory.mktemp("clipa") / "folder"
    write_folder(small("clipa"), path)
    return path


def test_a_traced_archive_of_open_clip_is_judged_module_by_module(
    folder: Path, tmp_path: Path
) -> None:
    archive = traced(build(small("clipa")), small("clipa"), tmp_path / "model.pt")
    found = judged(archive, folder)
    assert (failed(found), found.backend) == (set(), "jit")
    assert "not judged" not in message(found, "modules")
    (gate,) = (gate for gate in found.gates if gate.name == "modules")
    assert gate.figures["coverage"] == {"judged": 39, "not_judged": 0}


@pytest.mark.thorough
def test_a_scripted_archive_inside_of_another_model_is_found_by_its_weights(
    folder: Path, tmp_path: Path
) -> None:
    class Wrapped(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner = model

        def forward(self, image: torch.Tensor, text: torch.Tensor) -> Any:
            return self.inner(image, text)

    with torchscript_support.silenced():
        script = torch.jit.script(Wrapped(build(small("clipa")).own()))
    found = judged(save(script, tmp_path / "model.pt"), folder)
    assert failed(found) == set()
    assert "not judged" not in message(found, "modules")


@pytest.mark.thorough
def test_a_scripted_archive_of_coca_is_refused_with_what_to_trace(tmp_path: Path) -> None:
    """It has only `forward`, which takes a text for each image."""
    write_folder(small("coca"), tmp_path / "folder")
    with torchscript_support.silenced():
        script = torch.jit.script(build(small("coca")).own())
    found = judged(save(script, tmp_path / "model.pt"), tmp_path / "folder")
    assert "it has no encode_image and encode_text, which would be judged" in str(found.error)


def test_an_archive_of_coca_may_normalise_its_features_and_has_masks(tmp_path: Path) -> None:
    """Its encoders normalise by default; its causal masks are infinite, and no weights."""
    write_folder(small("coca"), tmp_path / "folder")
    path = traced(build(small("coca")), small("coca"), tmp_path / "model.pt")
    found = judged(path, tmp_path / "folder", select=["fidelity", "integrity"])
    assert failed(found) == set()
    assert [each.split(",")[0] for each in found.mapping] == [
        "image features: normalised",
        "text features: normalised",
    ]
    assert localize(path, reference=tmp_path / "folder", isolation="none").passed


@parametrize("kind", ["siglip", "chinese_clip", "align", "metaclip_2", "aimv2"])
def test_an_archive_of_transformers_takes_ids_first_and_its_mask(kind: str, tmp_path: Path) -> None:
    architecture = architecture_of(kind)
    write_folder(architecture, tmp_path / "folder")
    archive = traced(build(architecture), architecture, tmp_path / "model.pt")
    found = judged(archive, tmp_path / "folder")
    assert failed(found) == set()
    # The tracer leaves out the input that three modules of ALIGN take and do nothing with.
    assert ("not judged" in message(found, "modules")) == (kind == "align")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder of a CLIPModel, and an archive of the library's model of it."""
    path = tmp_path_factory.mktemp("clip")
    drawn = {key: tensor.float() for key, tensor in synthesize(MINUTE).items()}
    write(MINUTE, drawn, path / "weights.safetensors", Format.SAFETENSORS)
    write_transformers(open_checkpoint(path / "weights.safetensors"), path / "folder")
    own = own_of_transformers(json.loads((path / "folder" / "config.json").read_text()))
    assert own is not None
    weights = open_checkpoint(path / "folder", told=Told(own, "a test")).tensors
    model = family("transformers").build(own, weights)
    return path / "folder", traced(model, own, path / "model.pt")


@pytest.mark.parametrize("told", ["reference", "architecture"])
def test_an_archive_of_transformers_clip_model_is_compared_with_that(
    clip: tuple[Path, Path], told: str
) -> None:
    folder, archive = clip
    options: dict[str, Any] = {"reference": folder}
    if told == "architecture":
        options = {"architecture": folder / "config.json"}
    (found,) = check(archive, examples=2, isolation="none", **options).judgements
    assert failed(found) == set()
    assert "not judged" not in message(found, "modules")
    assert found.computes.startswith("transformers's own model")


# ------------------------------------------------------------------------------ localisation


def _epsilon(model: nn.Module) -> None:
    model.get_submodule("visual.transformer.resblocks.1.ln_2").eps = 1e-3  # type: ignore[assignment]


def _sum(model: nn.Module) -> None:
    block: Any = model.get_submodule("transformer.resblocks.0")
    original = block.forward
    put(block, "forward", lambda x, attn_mask=None: original(x, attn_mask=attn_mask) + 1e-3 * x)


def _skipped(model: nn.Module) -> None:
    put(model.get_submodule("visual.transformer.resblocks.1"), "forward", lambda x, **_: x)


def _scale(model: nn.Module) -> None:
    own: Any = model
    original = own.forward

    def forward(image: torch.Tensor, text: torch.Tensor) -> Sequence[torch.Tensor]:
        images, texts, scale = original(image, text)
        return images, texts, 1.01 * scale

    put(own, "forward", forward)


@parametrize(
    ("fault", "expected"),
    [
        (_epsilon, ("visual.transformer.resblocks.1.ln_2", "")),
        (_sum, ("transformer.resblocks.0", "between its modules")),
        (
            _skipped,
            ("visual.transformer.resblocks.1", "which is not called like the eager model's"),
        ),
        (_scale, ("forward", "normalisation, scale and product")),
    ],
)
def test_a_fault_is_localised(
    fault: Fault, expected: tuple[str, str], folder: Path, tmp_path: Path
) -> None:
    model = build(small("clipa"))
    fault(model.own())
    archive = traced(model, small("clipa"), tmp_path / "model.pt")
    found = judged(archive, folder)
    assert "fidelity" in failed(found)
    assert ("modules" in failed(found)) == (fault is not _scale)
    assert places(found) == [expected]


@pytest.mark.thorough
def test_localize_takes_the_configuration_or_the_reference(folder: Path, tmp_path: Path) -> None:
    """Only a reference also tells the weights that the archive should have."""
    model = build(small("clipa"))
    _epsilon(model.own())
    with torch.no_grad():
        model.get_parameter("model.logit_scale").sub_(0.01)
        model.get_parameter("model.text_projection").mul_(2)
    archive = traced(model, small("clipa"), tmp_path / "model.pt")
    config = folder / "open_clip_config.json"
    found = localize(archive, architecture=config, isolation="none")
    epsilon = ("visual.transformer.resblocks.1.ln_2", "")
    assert list(map(_named, found.localisation.found)) == [epsilon]
    found = localize(archive, reference=folder, isolation="none")
    assert list(map(_named, found.localisation.found)) == [
        epsilon,
        ("text_projection", "which is not the reference's"),
        ("logit_scale", "which is not the reference's"),
    ]
    told = report(found).plain
    assert "logit_scale by up to" in told
    assert f"--reference {folder}" in unfolded(told)


# ------------------------------------------------------------------------------ bad input


def test_an_archive_of_another_family_is_refused_with_a_key(tmp_path: Path, folder: Path) -> None:
    archive = traced(build(small("metaclip2")), small("metaclip2"), tmp_path / "model.pt")
    found = check(archive, reference=folder, isolation="none").judgements[0]
    assert found.error is not None
    assert "its weights do not fit the model of its configuration" in found.error
    assert str(archive) in found.error
    assert found.remedy is not None
    assert "--reference FOLDER" in found.remedy


@pytest.mark.thorough
def test_other_weights_than_the_reference_s_fail(tmp_path: Path, folder: Path) -> None:
    archive = traced(build(small("clipa"), seed=1), small("clipa"), tmp_path / "model.pt")
    found = judged(archive, folder)
    assert {"weights", "fidelity"} <= failed(found)
    assert "modules" not in failed(found)  # they are right for the weights of the archive
