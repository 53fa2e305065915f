"""Models of transformers as their own reference: each class, small, and the same tests for all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipcheck.audit.small import CLASSES, HF_TEXT, HF_VISION
from clipcheck.backends.reference import Reference
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.kinds import KINDS, TOWERS, UNSUPPORTED
from clipcheck.checkpoints.library import LibraryArchitecture, read_transformers
from clipcheck.checkpoints.told import named
from clipcheck.errors import ArchitectureError, UnknownModelError
from clipcheck.families import registry, transformers, transformers_config
from clipcheck.families.base import DualEncoder
from clipcheck.families.model_inputs import inputs_of
from clipcheck.harness.checking import check_files
from clipcheck.harness.options import CheckOptions
from clipcheck.inputs.batches import batches, length_of
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.models.loader import load_eager
from clipcheck.writers import programs
from clipcheck.writers.library import draw, write_folder
from clipcheck.writers.programs import write_pt2
from tests.families.conformance import built, inputs, require_float64, require_near
from tests.thorough import parametrize

CPU = torch.device("cpu")

EACH = parametrize("kind", CLASSES, quick=3)
"""The first three are tried each day: without a mask, with one of padding, and with one up to the
end, whose modules cast to float32."""

EXPORTED = CheckOptions(device="cpu", examples=EDGE_CASES, isolation="none", cache=False)


def config_of(kind: str) -> dict[str, Any]:
    return {"model_type": kind, "projection_dim": 24, **CLASSES[kind]}


def architecture_of(kind: str, files: Mapping[str, Any] | None = None) -> LibraryArchitecture:
    found, _ = read_transformers(config_of(kind), Path("c.json"), files)
    assert isinstance(found, LibraryArchitecture)
    return found


def test_every_class_has_a_small_model() -> None:
    assert CLASSES.keys() == KINDS.keys()


@EACH
def test_the_float64_copy_computes_both_towers_in_float64(kind: str) -> None:
    require_float64(architecture_of(kind))


@EACH
def test_the_eager_model_is_within_float32_rounding_of_its_float64_copy(kind: str) -> None:
    require_near(architecture_of(kind))


@EACH
def test_it_computes_what_the_library_computes(kind: str, tmp_path: Path) -> None:
    """Opened by the library itself, of a folder, and called as its users call it."""
    import transformers as library

    architecture = architecture_of(kind)
    write_folder(architecture, tmp_path / "m")
    model_class: Any = getattr(library, KINDS[kind].name)
    theirs = model_class.from_pretrained(tmp_path / "m", local_files_only=True).eval()
    found = built(architecture_of(kind))
    (pixels, tokens), *_ = inputs(architecture_of(kind))
    image, text = torch.from_numpy(pixels), torch.from_numpy(tokens)
    with torch.no_grad():
        expected = theirs(input_ids=text.long(), **images_of(kind, image), **masks(kind, text))
        per_image, per_text = found(image, text)
        images = torch.nn.functional.normalize(found.encode_image(image), dim=-1)
    assert torch.allclose(per_image, expected.logits_per_image, atol=1e-4)
    assert torch.allclose(per_text, expected.logits_per_text, atol=1e-4)
    assert torch.allclose(images, expected.image_embeds, atol=1e-5)


def images_of(kind: str, image: Tensor) -> dict[str, Tensor]:
    """Return pixels in the form that the class takes."""
    if kind != "siglip2":
        return {"pixel_values": image}
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    patches = torch.stack([convert_image_to_patches(each, 16) for each in image])
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int64),
        "spatial_shapes": torch.full((len(image), 2), 2),
    }


def masks(kind: str, text: Tensor) -> dict[str, Tensor]:
    """Return the attention mask that a tokenizer gives for texts."""
    if KINDS[kind].mask == "pad":
        pad = 1 if kind == "altclip" else 0
        return {"attention_mask": (text != pad).long()}
    if kind == "aimv2":
        ends = [row.tolist().index(119) if 119 in row else len(row) for row in text]
        places = torch.arange(text.shape[1])
        return {"attention_mask": torch.stack([(places <= end).long() for end in ends])}
    return {}


@EACH
def test_a_folder_is_read_back_and_built(kind: str, tmp_path: Path) -> None:
    architecture = architecture_of(kind)
    count = write_folder(architecture, tmp_path / "m", seed=1)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert (len(checkpoint.tensors), checkpoint.format) == (count, "transformers")
    assert checkpoint.model == architecture
    assert checkpoint.told == "its config.json"
    assert checkpoint.compute_dtype == "float32"
    model = load_eager(checkpoint, CPU, torch.float16)
    assert {p.dtype for p in model.parameters()} == {torch.float16}


@EACH
def test_seeding_changes_every_weight(kind: str) -> None:
    found, other = draw(architecture_of(kind), 0), draw(architecture_of(kind), 1)
    trained = {k for k, t in found.items() if t.is_floating_point()}
    alike = {k for k in trained if torch.equal(found[k], other[k])}
    assert alike <= {"logit_scale", "logit_bias", "temperature"}


@pytest.mark.thorough
@parametrize("kind", CLASSES)
def test_export_agrees_without_warnings(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_folder(architecture_of(kind), tmp_path / "m")
    judged = check_files(tmp_path / "m", replace(EXPORTED, backend="export"))
    assert judged.passed, judged
    assert capfd.readouterr().err == ""


@pytest.mark.thorough
def test_a_lost_channel_inside_an_mlp_of_a_program_is_detected(tmp_path: Path) -> None:
    write_folder(architecture_of("chinese_clip"), tmp_path / "m")
    program = tmp_path / "faulty.pt2"
    faulty = built(architecture_of("chinese_clip"))
    clear_a_row(faulty)
    write_pt2(faulty, program)
    failed = check_files(program, replace(EXPORTED, reference=tmp_path / "m"))
    (judgement,) = failed.judgements
    assert judgement.error is None
    assert "fidelity" in [gate.name for gate in judgement.gates if not gate.passed]


def clear_a_row(model: DualEncoder) -> None:
    wide = [
        m for m in model.modules() if getattr(m, "out_features", 0) == HF_TEXT["intermediate_size"]
    ]
    with torch.no_grad():
        wide[0].get_parameter("weight")[0].zero_()


def test_rows_of_ids_follow_the_rules_of_the_class() -> None:
    for kind, (start, end, pad) in {
        "siglip": (None, None, 1),
        "chinese_clip": (1, 2, 0),
        "altclip": (0, 2, 1),
        "metaclip_2": (0, 2, 1),
        "clipseg": (118, 119, 0),
        "vision-text-dual-encoder": (1, 2, 0),
    }.items():
        texts = transformers.sizes(architecture_of(kind)).texts
        assert (texts.start, texts.end, texts.pad) == (start, end, pad)
        for _, tokens in inputs(architecture_of(kind)):
            for row in tokens:
                assert (row[length_of(texts, row) :] == pad).all()
                assert start is None or row[0] == start
                assert 0 <= row.min() <= row.max() < 120


def test_the_class_decides_on_a_sigmoid_loss() -> None:
    found = {kind: transformers.sizes(architecture_of(kind)).sigmoid for kind in CLASSES}
    assert [kind for kind, sigmoid in found.items() if sigmoid] == ["siglip", "siglip2"]


@pytest.mark.parametrize(
    ("written", "mean", "std", "interpolation", "resize", "edge"),
    [
        ({}, 0.5, 0.5, "bicubic", "squash", 0),
        ({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}, 0.1, 0.2, "bicubic", "squash", 0),
        (
            {
                "resample": 2,
                "size": {"shortest_edge": 36},
                "crop_size": {"height": 32, "width": 32},
                "do_center_crop": True,
            },
            0.5,
            0.5,
            "bilinear",
            "shortest",
            36,
        ),
        # To -1 to 1 by a factor and an offset.
        (
            {"do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True},
            0.5,
            0.5,
            "bicubic",
            "squash",
            0,
        ),
        ({"do_normalize": False}, 0.0, 1.0, "bicubic", "squash", 0),
    ],
)
def test_pixels_are_made_as_the_folder_says(
    written: dict[str, Any], mean: float, std: float, interpolation: str, resize: str, edge: int
) -> None:
    files = {"preprocessor_config.json": written}
    images = transformers.sizes(architecture_of("siglip", files)).images
    assert images.mean == pytest.approx((mean,) * 3)
    assert images.std == pytest.approx((std,) * 3)
    assert (images.interpolation, images.resize, images.edge) == (interpolation, resize, edge)


def test_the_two_towers_of_a_larger_class_are_found(tmp_path: Path) -> None:
    """As CLIPSegForImageSegmentation has them, beside its decoder."""
    from safetensors.torch import save_file

    tensors = draw(architecture_of("clipseg"))
    larger = {f"clip.{key}": tensor for key, tensor in tensors.items()}
    save_file({**larger, "decoder.film.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_of("clipseg")))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert str(checkpoint.origin) == "without 'clip.'; left out: decoder.film.weight"


# --------------------------------------------------------------------------- one tower alone

LONE = {
    "CLIPTextModelWithProjection": {**HF_TEXT, "eos_token_id": 2, "projection_dim": 24},
    "SiglipVisionModel": HF_VISION,
    "CLIPTextModel": {**HF_TEXT, "eos_token_id": 2},
    "CLIPVisionModel": HF_VISION,
    "CLIPVisionModelWithProjection": {**HF_VISION, "projection_dim": 24},
    "SiglipTextModel": {**HF_TEXT, "projection_size": 24},
}


def alone(name: str) -> LibraryArchitecture:
    config = {"model_type": TOWERS[name].model_type, "architectures": [name], **LONE[name]}
    found, _ = read_transformers(config, Path("c.json"))
    assert isinstance(found, LibraryArchitecture)
    return found


def test_every_class_of_one_tower_has_a_small_model() -> None:
    assert LONE.keys() == TOWERS.keys()


@parametrize("name", LONE, quick=2)
def test_one_tower_gives_what_the_library_gives(name: str, tmp_path: Path) -> None:
    import transformers as library

    architecture = alone(name)
    write_folder(architecture, tmp_path / "m")
    model_class: Any = getattr(library, name)
    theirs = model_class.from_pretrained(tmp_path / "m", local_files_only=True).eval()
    reference = Reference(transformers.build(architecture, draw(architecture)), architecture, CPU)
    batch = next(iter(batches(30, inputs_of(architecture), 0)))
    ((own,), (exact,)) = (
        run([(batch.pixels, batch.tokens)]) for run in (reference.outputs, reference.exact_outputs)
    )
    with torch.no_grad():
        if TOWERS[name].tower == "image":
            expected = theirs(pixel_values=torch.from_numpy(batch.pixels))
        else:
            expected = theirs(input_ids=torch.from_numpy(batch.tokens).long())
    features = getattr(expected, TOWERS[name].projected or "pooler_output").numpy()
    output = "image_features" if TOWERS[name].tower == "image" else "text_features"
    assert own.keys() == exact.keys() == {output}
    assert np.allclose(own[output], features, atol=1e-5)
    assert exact[output].dtype == np.float64
    assert 0 < np.abs(own[output] - exact[output]).max() < 1e-4


@parametrize(
    ("name", "backend"),
    [(name, backend) for name, backend in zip(LONE, ("export", "trace") * 3, strict=True)],
)
def test_one_tower_is_judged_by_its_one_output(name: str, backend: str, tmp_path: Path) -> None:
    write_folder(alone(name), tmp_path / "m")
    (judgement,) = check_files(tmp_path / "m", replace(EXPORTED, backend=backend)).judgements
    assert judgement.error is None
    gates = {gate.name: gate for gate in judgement.gates}
    assert judgement.passed
    assert list(gates) == ["integrity", "fidelity", "modules", "repeatability"]
    assert "the one output present" in gates["integrity"].message


@pytest.mark.thorough
def test_a_fault_of_one_tower_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted into what is exported: the candidate alone has it."""
    name = "CLIPTextModelWithProjection"
    write_folder(alone(name), tmp_path / "m")
    exporting = programs.export

    def faulty(model: DualEncoder, **keywords: bool) -> Any:
        architecture = alone(name)
        other = transformers.build(architecture, draw(architecture))
        clear_a_row(other)
        return exporting(other, **keywords)

    monkeypatch.setattr(programs, "export", faulty)
    (judgement,) = check_files(tmp_path / "m", replace(EXPORTED, backend="export")).judgements
    assert judgement.error is None
    assert {"integrity", "fidelity"} <= {g.name for g in judgement.gates if not g.passed}


# --------------------------------------------------------------------------- bad input


def refusal(config: dict[str, Any]) -> str:
    def read() -> None:
        registry.sizes_of(read_transformers(config, Path("c.json"))[0])

    with pytest.raises(ArchitectureError) as caught:
        read()
    return str(caught.value)


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_a_known_class_that_is_not_judged_is_named(model_type: str) -> None:
    told = refusal({"model_type": model_type})
    assert f"it is a model of {UNSUPPORTED[model_type]}" in told
    assert "SiglipModel, Siglip2Model, ChineseCLIPModel" in told


@pytest.mark.parametrize("model_type", ["siglip2_text_model", "metaclip_2_vision_model"])
def test_one_tower_of_a_class_that_is_judged_as_a_whole_is_named(model_type: str) -> None:
    whole = "MetaClip2Model" if "metaclip" in model_type else "Siglip2Model"
    told = refusal({"model_type": model_type})
    assert f"{model_type!r} is one tower of {whole}, of which only both together" in told


def test_every_dual_encoder_of_the_installed_transformers_is_judged_or_has_a_reason() -> None:
    """By its source: a class with features of texts, and of images, videos or sounds."""
    import transformers as library

    folder = Path(library.__file__).parent / "models"
    sources = [path for path in folder.glob("*/modeling_*.py") if path.parent.name != "auto"]
    found = {
        path.parent.name for path in sources if "def get_text_features(" in path.read_text("utf-8")
    }
    types = {each.replace("-", "_") for each in (*KINDS, *UNSUPPORTED, "clip")}
    assert len(found) >= 15
    assert {name.replace("x_clip", "xclip") for name in found} <= types


def test_a_temperature_that_a_file_leaves_out_is_the_configuration_s() -> None:
    """As in the published files of TIPSv2, see the class's `_keys_to_ignore_on_load_missing`."""
    architecture = architecture_of("tipsv2")
    tensors = draw(architecture)
    del tensors["temperature"]
    built = transformers.build(architecture, tensors)
    assert built.log_scale().exp().item() == pytest.approx(1 / 0.005065968260169029)


def test_logits_of_tipsv2_exist_in_half_precision() -> None:
    """The library's own `forward` fails: it multiplies texts in float32 by images in float16."""
    (pixels, tokens), *_ = inputs(architecture_of("tipsv2"))
    model = built(architecture_of("tipsv2"), torch.float16)
    per_image, per_text = model(torch.from_numpy(pixels), torch.from_numpy(tokens))
    assert per_image.isfinite().all()
    assert torch.equal(per_text, per_image.t())


def test_an_unknown_class_is_named_with_those_that_are_judged() -> None:
    told = refusal({"model_type": "llama"})
    assert "its model_type 'llama' is not supported" in told
    assert "clipcheck supports CLIPModel, SiglipModel" in told


@pytest.mark.parametrize("found", [None, ["CLIPModel"], ["CLIPTextModel", "CLIPVisionModel"]])
def test_a_tower_without_a_class_is_refused_with_the_possible_classes(found: Any) -> None:
    config = {**HF_TEXT, "model_type": "clip_text_model", "architectures": found}
    told = refusal(config)
    assert "expected CLIPTextModel or CLIPTextModelWithProjection under 'architectures'" in told
    assert f"found {found!r}" in told


@pytest.mark.parametrize("place", ["top", "text_config"])
def test_code_of_a_folder_is_never_run(place: str) -> None:
    config = config_of("siglip")
    asking = {"auto_map": {"AutoModel": "modeling.Mine"}}
    config = {**config, **asking} if place == "top" else {**config, place: {**HF_TEXT, **asking}}
    assert "its configuration has auto_map" in refusal(config)
    assert "clipcheck never does" in refusal(config)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"vision_config": {**HF_VISION, "hidden_size": "wide"}}, "hidden_size"),
        ({"vision_config": {**HF_VISION, "image_size": -1}}, "image_size, found -1"),
        ({"text_config": {**HF_TEXT, "vocab_size": 0}}, "vocab_size, found 0"),
        ({"vision_config": 7}, "vision_config"),
        (
            {"vision_config": {**HF_VISION, "image_size": 9999}},
            "at most 8192 pixels for image_size",
        ),
    ],
)
def test_a_configuration_that_is_not_sound_is_refused(changed: dict[str, Any], told: str) -> None:
    found = refusal({**config_of("siglip"), **changed})
    assert told in found
    assert "Take the config.json that belongs to the weights." in found


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"projection_dim": 0}, "expected a whole number for projection_dim, found 0"),
        ({"projection_dim": None}, "expected a whole number for projection_dim, found None"),
        ({"eos_token_id": -1}, "expected an id below 120 for eos_token_id"),
        ({"eos_token_id": 49407}, "expected an id below 120 for eos_token_id, found 49407"),
    ],
)
def test_a_tower_s_configuration_that_is_not_sound_is_refused(
    changed: dict[str, Any], told: str
) -> None:
    name = "CLIPTextModelWithProjection"
    config = {"model_type": "clip_text_model", "architectures": [name], **LONE[name], **changed}
    assert told in refusal(config)


def test_weights_of_another_size_are_refused_with_the_key_and_both_shapes() -> None:
    architecture = architecture_of("clipseg")
    tensors = draw(architecture)
    tensors["visual_projection.weight"] = torch.zeros(24, 7)
    tensors["text_model.more"] = tensors.pop("text_projection.weight")
    with pytest.raises(ArchitectureError) as caught:
        transformers.build(architecture, tensors)
    told = str(caught.value)
    assert "visual_projection.weight has shape [24, 7], expected [24, 32]" in told
    assert "text_projection.weight is missing, expected [24, 32]" in told
    assert "text_model.more, [24, 32], is not a key of the model" in told


def test_an_unknown_class_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownModelError) as caught:
        named("transformers:SiglipModle")
    assert "The nearest name is 'transformers:SiglipModel'" in str(caught.value)


def test_a_class_has_the_library_s_default_sizes_made_shallow(
    capfd: pytest.CaptureFixture[str],
) -> None:
    told = named("transformers:SiglipModel")
    assert capfd.readouterr().err == ""
    assert isinstance(told.model, LibraryArchitecture)
    found = transformers.sizes(told.model)
    assert (found.image_resolution, found.context_length, found.vocab_size) == (224, 64, 32000)
    settings = transformers.shallow(told.model, 1).settings
    assert settings["text_config"]["num_hidden_layers"] == 1
    assert settings["vision_config"]["num_hidden_layers"] == 1


def test_an_efficientnet_is_made_shallow_by_its_stages() -> None:
    told = named("transformers:AlignModel")
    assert isinstance(told.model, LibraryArchitecture)
    config = transformers_config.config_of(transformers.shallow(told.model, 2))
    assert config.vision_config.num_hidden_layers == 7
    assert config.text_config.num_hidden_layers == 2
