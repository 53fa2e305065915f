"""Models of open_clip as their own reference: each kind, small, and the same tests for all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from clipcheck.audit.small import CONFIGS, small
from clipcheck.checkpoints.architecture import Activation, Architecture
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keys import specs
from clipcheck.checkpoints.library import LibraryArchitecture, read_open_clip, with_text_config
from clipcheck.checkpoints.opening import open_pair
from clipcheck.checkpoints.told import named
from clipcheck.errors import ArchitectureError, UnfitError
from clipcheck.families import open_clip, registry
from clipcheck.inputs.batches import length_of
from clipcheck.models.loader import load_eager
from clipcheck.writers.library import draw, write_folder
from clipcheck.writers.synthesize import shallow
from tests import oracles
from tests.families.conformance import inputs, require_float64, require_near
from tests.thorough import parametrize

CPU = torch.device("cpu")

VISION, TEXT = CONFIGS["clipa"]["vision_cfg"], CONFIGS["clipa"]["text_cfg"]

KINDS = ("siglip", "clipa", "metaclip2", "coca", "convnext", "eva", "roberta")
"""Names of the small models of one kind each; the others take seconds."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_float64_copy_computes_both_towers_in_float64(kind: str) -> None:
    twin = require_float64(small(kind))
    assert {b.dtype for b in twin.buffers() if b.is_floating_point()} <= {torch.float64}


@parametrize("kind", KINDS, quick=2)
def test_the_eager_model_is_within_float32_rounding_of_its_float64_copy(kind: str) -> None:
    require_near(small(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_library_computes(kind: str) -> None:
    """Built by open_clip itself, and given the weights by `load_state_dict`."""
    architecture = small(kind)
    tensors = draw(architecture)
    theirs = oracle(architecture)
    theirs.load_state_dict(tensors)
    (pixels, tokens), *_ = inputs(small(kind))
    image, text = torch.from_numpy(pixels), torch.from_numpy(tokens).long()
    with torch.no_grad():
        found = open_clip.build(architecture, tensors)
        ours = found.encode_image(image), found.encode_text(text)
        expected = theirs.encode_image(image), theirs.encode_text(text)
        if kind != "coca":  # which normalises, unless it is told not to
            # Equal on torch 2.14; on 2.9 SigLIP's image features are 5e-7 apart.
            for each in zip(ours, expected, strict=True):
                assert torch.allclose(*each, rtol=0, atol=2e-6)
        per_image, _ = found.logits(*ours)
        images, texts = (torch.nn.functional.normalize(each, dim=-1) for each in expected)
        logits = theirs.logit_scale.exp() * images @ texts.T
        if theirs.logit_bias is not None:
            logits += theirs.logit_bias
    assert torch.allclose(per_image, logits, atol=1e-4)


def oracle(architecture: LibraryArchitecture) -> Any:
    """Return the library's model, built by the library, in evaluation mode."""
    config = architecture.settings["model_cfg"]
    custom = config.pop("custom_text", False)
    library = oracles.open_clip()
    if "hf_model_name" in config["text_cfg"]:
        return open_clip.empty(architecture).eval()  # it would fetch a configuration
    kind = library.CoCa if "multimodal_cfg" in config else library.CustomTextCLIP
    return (kind if custom else library.CLIP)(**config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_read_back_and_built(kind: str, tmp_path: Path) -> None:
    architecture = small(kind)
    count = write_folder(architecture, tmp_path / "m", seed=1)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert (len(checkpoint.tensors), checkpoint.format) == (count, "open_clip")
    assert isinstance(checkpoint.model, LibraryArchitecture)
    assert checkpoint.model.settings["model_cfg"] == architecture.settings["model_cfg"]
    assert checkpoint.told == "its open_clip_config.json"
    model = load_eager(checkpoint, CPU, torch.float16)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    with pytest.raises(UnfitError, match="expected a model of OpenAI's architecture"):
        checkpoint.architecture  # noqa: B018


@pytest.mark.parametrize("kind", KINDS)
def test_seeding_changes_every_weight(kind: str) -> None:
    found, other = draw(small(kind), 0), draw(small(kind), 1)
    trained = {k for k, t in found.items() if t.is_floating_point() and not k.endswith("_mask")}
    alike = {k for k in trained if torch.equal(found[k], other[k])}
    assert alike <= {"logit_scale", "logit_bias"}
    assert all(t.unique().numel() > 1 for k, t in found.items() if k in trained - alike)


def test_rows_of_ids_follow_the_rules_of_the_family() -> None:
    for kind, (start, end, pad) in {
        "siglip": (None, None, 1),
        "clipa": (None, None, 0),
        "metaclip2": (0, 2, 1),
        "coca": (118, 119, 0),
        "roberta": (0, 2, 1),
    }.items():
        texts = open_clip.sizes(small(kind)).texts
        assert (texts.start, texts.end, texts.pad) == (start, end, pad)
        for _, tokens in inputs(small(kind)):
            for row in tokens:
                length = length_of(texts, row)
                assert (row[length:] == pad).all()
                assert start is None or row[0] == start
                assert row.min() >= 0
                assert row.max() < 120


def test_a_logit_bias_means_a_sigmoid_loss() -> None:
    found = {kind: open_clip.sizes(small(kind)).sigmoid for kind in KINDS}
    assert [kind for kind, sigmoid in found.items() if sigmoid] == ["siglip"]


# --------------------------------------------------------------------------- bad input


def test_weights_of_another_size_are_refused_with_the_key_and_both_shapes() -> None:
    architecture = small("clipa")
    tensors = draw(architecture)
    tensors["visual.proj"] = torch.zeros(64, 7)
    with pytest.raises(
        ArchitectureError, match=r"visual\.proj has shape \[64, 7\], expected \[64, 64\]"
    ):
        open_clip.build(architecture, tensors)


def test_weights_that_are_missing_or_too_many_are_named() -> None:
    architecture = small("clipa")
    tensors = draw(architecture)
    tensors["visual.more"] = tensors.pop("visual.proj")
    with pytest.raises(ArchitectureError) as caught:
        open_clip.build(architecture, tensors)
    assert "visual.proj is missing, expected [64, 64]" in str(caught.value)
    assert "visual.more, [64, 64], is not a key of the model" in str(caught.value)


@pytest.mark.parametrize("name", ["hf-hub:timm/vit_tiny_patch16_224", "timm/vit_tiny"])
def test_a_tower_that_would_be_fetched_is_refused(name: str) -> None:
    vision = {"timm_model_name": name, "image_size": 224}
    found = read_open_clip({**CONFIGS["convnext"], "vision_cfg": vision}, Path("c.json"))
    with pytest.raises(ArchitectureError, match=rf"{name}.*downloads no models"):
        registry.sizes_of(found)


@pytest.mark.parametrize("name", ["vit_of_tomorrow", "vit_base_patch32_224.of_tomorrow"])
def test_a_tower_that_this_timm_does_not_have_is_named(name: str) -> None:
    config = {
        "model_cfg": {
            **CONFIGS["clipa"],
            "vision_cfg": {"timm_model_name": name, "image_size": 224},
        }
    }
    found = read_open_clip(config, Path("c.json"))
    assert isinstance(found, LibraryArchitecture)
    with pytest.raises(ArchitectureError, match=f"does not have the model '{name}'"):
        open_clip.empty(found)


def test_options_that_open_clip_does_not_have_are_named() -> None:
    config = {"model_cfg": {**CONFIGS["clipa"], "vision_cfg": {**VISION, "warp": 9}}}
    found = read_open_clip(config, Path("c.json"))
    assert isinstance(found, LibraryArchitecture)
    with pytest.raises(ArchitectureError, match="warp"):
        open_clip.empty(found)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"embed_dim": "64"}, "model_cfg.embed_dim is '64', expected a whole number"),
        ({"vision_cfg": None, "init_logit_bias": 1}, "model_cfg.vision_cfg is null"),
        (
            {"vision_cfg": {**VISION, "image_size": -1}},
            "model_cfg.vision_cfg.image_size is -1, expected a whole number",
        ),
        ({"vision_cfg": {**VISION, "patch_size": "7"}}, "patch_size is '7', expected a whole"),
        (
            {"vision_cfg": {"timm_model_name": 7}},
            "model_cfg.vision_cfg.timm_model_name is 7, expected a text",
        ),
        ({"text_cfg": {**TEXT, "pad_id": -1}}, "model_cfg.text_cfg.pad_id is -1, expected an id"),
        (
            {"text_cfg": {**TEXT, "eos_id": 120}},
            "model_cfg.text_cfg.eos_id is 120, expected an id below 120",
        ),
    ],
)
def test_an_invalid_configuration_is_refused(changed: dict[str, Any], told: str) -> None:
    require_refusal({"model_cfg": {**CONFIGS["clipa"], **changed}}, told)


@pytest.mark.parametrize(
    ("preprocess", "told"),
    [
        (7, "preprocess_cfg is 7, expected an object"),
        ({"mean": [0.5, 0.5]}, "preprocess_cfg.mean is [0.5, 0.5], expected three numbers"),
        (
            {"std": [1, 0, 1]},
            "preprocess_cfg.std is [1, 0, 1], expected three numbers other than 0",
        ),
        ({"interpolation": "cubic"}, "expected one of bicubic, bilinear, random"),
        ({"resize_mode": {}}, "preprocess_cfg.resize_mode is {}, expected one of shortest"),
        ({"fill_color": "red"}, "preprocess_cfg.fill_color is 'red', expected a whole number"),
    ],
)
def test_invalid_preprocessing_is_refused(preprocess: object, told: str) -> None:
    require_refusal({"model_cfg": CONFIGS["clipa"], "preprocess_cfg": preprocess}, told)


def test_one_number_is_the_mean_of_all_channels() -> None:
    config = {"model_cfg": CONFIGS["clipa"], "preprocess_cfg": {"mean": 0.5, "std": 0.25}}
    images = registry.sizes_of(read_open_clip(config, Path("c.json"))).images
    assert (images.mean, images.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.thorough
def test_a_billion_layers_are_refused_before_they_fill_the_memory() -> None:
    vision = {**VISION, "layers": 10**9, "width": 8, "head_width": 8}
    found = read_open_clip({"model_cfg": {**CONFIGS["clipa"], "vision_cfg": vision}}, Path("c"))
    assert isinstance(found, LibraryArchitecture)
    with pytest.raises(ArchitectureError, match="it has more than 20,000 weights"):
        open_clip.empty(found)


def require_refusal(config: dict[str, Any], told: str) -> None:
    found = read_open_clip(config, Path("c.json"))
    assert isinstance(found, LibraryArchitecture)
    with pytest.raises(ArchitectureError) as caught:
        open_clip.sizes(found)
    assert told in str(caught.value)


def test_the_configuration_of_a_text_model_has_to_be_there() -> None:
    found = read_open_clip({"model_cfg": CONFIGS["roberta"]}, Path("c.json"))
    assert isinstance(found, LibraryArchitecture)
    with pytest.raises(ArchitectureError) as caught:
        open_clip.sizes(found)
    assert "'roberta-base' of transformers" in str(caught.value)
    assert "Put the config.json of roberta-base into the folder, as text_config.json." in str(
        caught.value
    )


# --------------------------------------------------------------------------- open_clip's list


def with_text_config_of(name: str) -> LibraryArchitecture:
    found = named(f"open_clip:{name}").model
    assert isinstance(found, LibraryArchitecture)
    return with_text_config(found)


@pytest.mark.thorough
def test_models_with_a_text_model_of_transformers_use_its_configuration() -> None:
    """The others are built by the test of the list in tests/sweep."""
    library = oracles.open_clip()
    names = [
        name
        for name in sorted({name for name, _ in library.list_pretrained()})
        if "hf_model_name" in library.get_model_config(name)["text_cfg"]
    ]
    assert len(names) >= 5
    for name in names:
        made = shallow(with_text_config_of(name), 1)
        assert isinstance(made, LibraryArchitecture)
        open_clip.sizes(made)
        assert open_clip.empty(made).state_dict()


def test_the_configuration_of_a_text_model_is_found_by_its_name() -> None:
    found = with_text_config_of("roberta-ViT-B-32")
    ((name, text),) = found.files
    assert (name, json.loads(text)["model_type"]) == ("text_config.json", "roberta")


def weights_alone(name: str, folder: Path) -> Path:
    """Write a sparse file of weights with the names and shapes of one of open_clip's models, which
    takes no room on the disk."""
    found = named(f"open_clip:{name}").model
    if isinstance(found, Architecture):
        shapes = {key: spec.shape for key, spec in specs(found) if spec.kind != "buffer"}
    else:
        with torch.device("meta"):
            held = open_clip.empty(with_text_config(found)).state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in held.items()}
    header, end = {}, 0
    for key, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "weights.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


_FEW = ("ViT-B-32", "RN50", "ViT-B-16-SigLIP2", "coca_ViT-B-32")


def one_of_each_kind() -> list[str]:
    """Return one name for each set of keys in configurations; the others differ only in values."""
    found: dict[object, str] = {}
    for name in sorted({name for name, _ in oracles.open_clip().list_pretrained()}):
        config = oracles.open_clip().get_model_config(name)
        parts = [each if isinstance(each, dict) else {} for each in config.values()]
        found.setdefault((*config, *(key for part in parts for key in part)), name)
    return list(found.values())


@parametrize("names", [_FEW, None])
def test_weights_alone_are_never_judged_as_another_function(
    names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    """No two of its pairs of one size have to compute the same: what weights do not tell, somebody
    has to."""
    for name in names or one_of_each_kind():
        with pytest.raises(ArchitectureError) as caught:
            open_pair(weights_alone(name, tmp_path))
        assert str(caught.value), name


@pytest.mark.thorough
def test_a_tag_shows_the_activation_of_each_pair() -> None:
    """28 of the 196 differ from their configuration."""
    differing = []
    for name, tag in oracles.open_clip().list_pretrained():
        quick = oracles.open_clip().get_pretrained_cfg(name, tag).get("quick_gelu", False)
        found = named(f"open_clip:{name}/{tag}").model
        if isinstance(found, Architecture):
            computes = found.text_blocks.activation is Activation.QUICK_GELU
        else:
            computes = found.settings["model_cfg"]["quick_gelu"]
        assert computes == quick, (name, tag)
        config = oracles.open_clip().get_model_config(name)
        if quick != config.get("quick_gelu", False):
            differing.append((name, tag))
    assert len(differing) == 28
