"""Sources of an architecture, compared with open_clip's own models."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clipcheck.checkpoints import told
from clipcheck.checkpoints.architecture import ARCHITECTURES, Activation, Architecture, Blocks, ViT
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.configs_of_open_clip import open_clip_config
from clipcheck.checkpoints.configs_of_transformers import transformers_config
from clipcheck.checkpoints.dimensions import dimensions_of
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.opening import open_pair
from clipcheck.checkpoints.told import Told, candidates, named
from clipcheck.errors import ArchitectureError, ClipcheckError, UnknownModelError
from clipcheck.writers.convert import write
from clipcheck.writers.synthesize import synthesize
from tests.oracles import open_clip
from tests.samples import MINUTE, MINUTE_RESNET, minute_weights, saved
from tests.thorough import parametrize

GELU = MINUTE.with_blocks(activation=Activation.GELU)
RUN = "2026_01_01-12_00_00-model_{}-lr_0.0005-b_64-j_4-p_amp"

# ------------------------------------------------------------------ open_clip's whole list


@dataclass(frozen=True)
class Function:
    """What one of open_clip's towers computes, as read from its modules."""

    heads: int
    mlp_width: int
    epsilon: float
    activation: str


def functions(model: Any) -> list[Function | int]:
    """Return those of both towers; for a ModifiedResNet, the heads of its attention pool."""
    visual = model.visual
    pool = getattr(visual, "attnpool", None)
    image = visual.attnpool.num_heads if hasattr(pool, "num_heads") else function(visual)
    return [image, function(model)]


def function(tower: Any) -> Function:
    blocks = list(tower.transformer.resblocks)
    last = tower.ln_post if hasattr(tower, "ln_post") else tower.ln_final
    norms = [last, *(norm for block in blocks for norm in (block.ln_1, block.ln_2))]
    (found,) = {
        Function(b.attn.num_heads, b.mlp.c_fc.out_features, n.eps, repr(b.mlp.gelu))
        for b in blocks
        for n in norms
    }
    return found


def expected(a: Architecture) -> list[Function | int]:
    """Return the same, as the architecture states it."""
    text = functions_of(a.text_blocks, a.text_width)
    if isinstance(a.vision, ViT):
        return [functions_of(a.vision.blocks, a.vision.width), text]
    return [a.vision.heads, text]


def functions_of(blocks: Blocks, width: int) -> Function:
    activation = {
        Activation.QUICK_GELU: "QuickGELU()",
        Activation.GELU: "GELU(approximate='none')",
        Activation.GELU_TANH: "GELU(approximate='tanh')",
    }[blocks.activation]
    return Function(
        width // blocks.head_width, round(width * blocks.mlp_ratio), blocks.epsilon, activation
    )


@functools.cache
def library_model(name: str, *, quick: bool) -> Any:
    config = {**open_clip().get_model_config(name), "quick_gelu": quick}
    config.pop("custom_text", None)
    with torch.device("meta"):
        return open_clip().CLIP(**config)


def pairs() -> list[tuple[str, str]]:
    return list(open_clip().list_pretrained())


def test_no_weights_of_open_clips_list_are_judged_as_another_function(thorough: bool) -> None:
    """Alone none are; with what the list says of them, as what they were trained to compute. A
    plain run takes every eighth."""
    wrong, accepted = [], 0
    every = 1 if thorough else 8
    for model, tag in pairs()[::every]:
        quick = bool(open_clip().get_pretrained_cfg(model, tag).get("quick_gelu", False))
        found = named(f"open_clip:{model}/{tag}").model
        if isinstance(found, LibraryArchitecture):
            continue
        accepted += 1
        theirs = library_model(model, quick=quick)
        dimensions = dimensions_of(theirs.state_dict(), "weights")
        told_alone, _ = told.telling(Path("weights"), dimensions, None, {}, archive=False)
        listed = [name for _, names in candidates(dimensions) for name in names]
        if (
            told_alone is not None
            or f"open_clip:{model}" not in listed
            or dimensions.computing_as(found) != found
            or functions(theirs) != expected(found)
            or pooling(theirs) != ("tok", None, "argmax")
        ):
            wrong.append((model, tag))
    assert len(pairs()) >= 196
    assert (wrong, accepted >= 96 // every) == ([], True)


def pooling(model: Any) -> tuple[object, ...]:
    usual = ("tok", None)
    visual = model.visual
    if hasattr(visual, "transformer"):
        usual = (visual.pool_type, visual.attn_pool)
    return (*usual, model.text_pool_type)


def test_possible_architectures_are_listed_with_their_functions() -> None:
    with torch.device("meta"):
        weights = open_clip().CLIP(**open_clip().get_model_config("ViT-B-32")).state_dict()
    found = candidates(dimensions_of(weights, "weights"))
    assert found[0] == (
        "images QuickGELU, 12 heads of 64 channels; texts QuickGELU, 8 heads of 64 channels",
        ["ViT-B/32", "open_clip:ViT-B-32-quickgelu"],
    )
    names = [names for function, names in found if function.startswith("images GELU, 12 heads")]
    assert names == [["open_clip:ViT-B-32"]]
    assert candidates(MINUTE) == []


# ------------------------------------------------------------------ names


def test_a_released_name_sets_the_architecture() -> None:
    assert named("ViT-B/32") == Told(
        ARCHITECTURES["ViT-B/32"], "--architecture ViT-B/32", "ViT-B/32"
    )


def test_a_name_of_open_clips_list_sets_its_configuration_and_lists_other_tags() -> None:
    found = named("open_clip:ViT-H-14")
    assert found.architecture.vision == ViT(
        32, 1280, 14, blocks=Blocks(80, activation=Activation.GELU)
    )
    assert str(found) == (
        "open_clip's configuration ViT-H-14 (its tags metaclip_fullcc, dfn5b use "
        "QuickGELU: open_clip:ViT-H-14-quickgelu)"
    )
    assert named("open_clip:ViT-B-32-quickgelu").architecture == ARCHITECTURES["ViT-B/32"]
    assert named("open_clip:ViT-B-32-quickgelu").note == ""


def test_a_tag_shows_the_activation_that_its_weights_were_trained_with() -> None:
    released = ARCHITECTURES["ViT-B/32"]
    found = named("open_clip:ViT-B-32/metaclip_400m")
    assert (found.architecture, found.source) == (
        released,
        "open_clip's ViT-B-32 and its tag metaclip_400m",
    )
    gelu = released.with_blocks(activation=Activation.GELU)
    assert named("open_clip:ViT-B-32/laion2b_s34b_b79k").architecture == gelu


def test_a_configuration_file_gives_its_architecture(tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    for config in (
        {"model_cfg": open_clip_config(GELU), "preprocess_cfg": {}},
        open_clip_config(GELU),
        transformers_config(GELU),
    ):
        path.write_text(json.dumps(config))
        assert named(str(path)) == Told(GELU, f"--architecture {path}", str(path))


SIGLIP = {
    "embed_dim": 8,
    "init_logit_bias": -10,
    "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"},
    "text_cfg": {"width": 64},
}

NAMES = {
    "ViT-B-32": "found 'ViT-B-32'. The nearest name is 'ViT-B/32'.",
    "open_clip:ViT-H14": "The nearest name is 'open_clip:ViT-H-14'.",
    "open_clip:ViT-B-32/openay": "no weights 'openay' of ViT-B-32. The nearest name is 'openai'.",
    "no.json": "there is no file 'no.json'. Give the path of a configuration.",
    ".": "found the folder '.'. Give the file in it: open_clip_config.json, or config.json.",
}


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_name_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        named(name)
    assert str(caught.value).startswith("--architecture: ")
    assert NAMES[name] in str(caught.value)


def test_an_architecture_that_we_cannot_build_is_left_to_the_library() -> None:
    clipa = named("open_clip:ViT-L-14-CLIPA").model
    assert isinstance(clipa, LibraryArchitecture)
    assert "vision_cfg.no_ln_pre True, vision_cfg.pool_type 'avg'" in clipa.describe()
    siglip = named("open_clip:ViT-B-16-SigLIP").model
    assert isinstance(siglip, LibraryArchitecture)
    assert "vision_cfg.timm_model_name 'vit_base_patch16_siglip_224'" in siglip.describe()
    assert siglip.settings["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]


def test_a_tag_of_a_librarys_model_has_its_own_activation_and_preprocessing() -> None:
    found = named("open_clip:ViT-H-14-worldwide-quickgelu/metaclip2_worldwide")
    assert isinstance(found.model, LibraryArchitecture)
    assert found.model.settings["model_cfg"]["quick_gelu"] is True
    with pytest.raises(
        UnknownModelError, match="open_clip has no weights 'web' of ViT-B-16-SigLIP"
    ):
        named("open_clip:ViT-B-16-SigLIP/web")


def test_code_from_elsewhere_is_never_run(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    for config in ({"trust_remote_code": True}, {"auto_map": {"AutoModel": "x.Y"}}):
        path.write_text(json.dumps({"model_cfg": SIGLIP, **config}))
        with pytest.raises(
            ArchitectureError, match="asks to download code and run it, which clipcheck never does"
        ):
            named(str(path))


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, message in (("{}", "expected the configuration of a CLIP model"), ("{", "not JSON")):
        path.write_text(text)
        with pytest.raises(ClipcheckError, match=message):
            named(str(path))


# ------------------------------------------------------------------ weights alone


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.pt"
    path.write_bytes(saved(minute_weights()))
    return path


def test_weights_alone_are_not_judged_and_the_message_lists_possible_architectures(
    weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureError) as caught:
        open_pair(weights)
    assert str(caught.value) == (
        f"{weights}: the model's activation, heads and epsilon are not known, since weights do "
        "not determine them: no configuration beside it, no record in it. No known model has "
        "these dimensions. Give the architecture with --architecture (in pytest "
        "--clip-architecture, in Python architecture=): the open_clip_config.json or config.json "
        "(transformers) of its training."
    )
    path = tmp_path / "tiny.safetensors"
    tensors = synthesize(ARCHITECTURES["tiny-vit"])
    save_file(tensors, path)
    with pytest.raises(
        ArchitectureError, match=r"Known models of these dimensions: tiny-vit \(images Quic"
    ):
        open_pair(path)


def test_the_user_can_give_the_architecture(weights: Path, tmp_path: Path) -> None:
    config = tmp_path / "model.json"
    config.write_text(json.dumps(transformers_config(GELU)))
    subject, reference = open_pair(weights, architecture=config)
    assert isinstance(subject, Checkpoint)
    assert (subject.architecture, reference) == (GELU, None)
    assert subject.told == f"--architecture {config}"


def test_an_architecture_with_other_dimensions_is_refused(weights: Path) -> None:
    with pytest.raises(ArchitectureError) as caught:
        open_pair(weights, architecture="tiny-vit")
    assert str(caught.value) == (
        f"{weights}: its weights do not fit the model of --architecture tiny-vit, "
        "which has image layers 3 in place of 1, image perceptron width 512 in place of 256, image "
        "width 128 in place of 64, image resolution 32 in place of 16, text layers 2 in place of 1 "
        "and 4 more. Give the architecture or the configuration that belongs to the weights."
    )
    with pytest.raises(ArchitectureError, match="image tower ModifiedResNet in place of ViT"):
        open_pair(weights, architecture="tiny-resnet")


def test_a_known_architecture_of_one_file_holds_for_both(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "told.safetensors"
    write(GELU, minute_weights(), other, Format.SAFETENSORS)
    for pair in ((weights, other), (other, weights)):
        subject, reference = open_pair(*pair)
        assert isinstance(subject, Checkpoint)
        assert reference is not None
        assert subject.architecture == reference.architecture == GELU
        sources = {subject.told, reference.told}
        assert sources == {"its own metadata", f"its own metadata, of {other}"}


def test_two_files_of_weights_alone_do_not_show_the_activation(weights: Path) -> None:
    with pytest.raises(ArchitectureError, match="epsilon are not known"):
        open_pair(weights, weights)


def test_an_archive_has_code_that_is_judged(minute_archive: Path, weights: Path) -> None:
    for pair in ((minute_archive, None), (minute_archive, weights), (weights, minute_archive)):
        subject, _ = open_pair(*pair)
        assert isinstance(subject, Checkpoint)
        assert (subject.architecture, subject.told) == (MINUTE, "")


# ------------------------------------------------------------------ beside weights


CONFIGS = {
    "config.json": transformers_config,
    "open_clip_config.json": lambda a: {"model_cfg": open_clip_config(a)},
}


def put(folder: Path, name: str, architecture: Architecture) -> None:
    (folder / name).write_text(json.dumps(CONFIGS[name](architecture)))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_beside_weights_shows_the_activation(weights: Path, name: str) -> None:
    put(weights.parent, name, GELU)
    found = open_checkpoint(weights)
    assert (found.architecture, found.told) == (GELU, f"the {name} beside it")


def test_notes_on_a_configuration_are_reported_with_it(tmp_path: Path) -> None:
    added = replace(MINUTE, vocab_size=49410)
    config = transformers_config(added)
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(synthesize(added), tmp_path / "model.safetensors")
    for path, source in (
        (tmp_path / "model.safetensors", "the config.json beside it"),
        (tmp_path, "its config.json"),
    ):
        assert open_checkpoint(path).told.startswith(f"{source} (text_config has vocab_size 49410")
    told_by_user = named(str(tmp_path / "config.json"))
    assert "the legacy eos_token_id 2: text features are" in told_by_user.note


def test_configurations_beside_weights_have_to_agree(weights: Path) -> None:
    put(weights.parent, "config.json", GELU)
    put(weights.parent, "open_clip_config.json", GELU)
    assert open_checkpoint(weights).told == "the config.json beside it"
    put(weights.parent, "open_clip_config.json", MINUTE)
    with pytest.raises(ArchitectureError, match=r"and the open_clip_config\.json beside it disag"):
        open_pair(weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(transformers_config(ARCHITECTURES["tiny-vit"])), "is of another model .image"),
        ('{"model_type": "bert"}', "cannot be used .its model_type 'bert'"),
        ("no JSON", "cannot be used .it is not JSON"),
    ],
)
def test_a_configuration_of_something_else_beside_weights_is_ignored(
    weights: Path, text: str, message: str
) -> None:
    weights.with_name("config.json").write_text(text)
    with pytest.raises(
        ArchitectureError, match=f"not determine them: the config.json beside it {message}"
    ):
        open_pair(weights)
    # What is assumed for `clipcheck.load`.
    assert open_checkpoint(weights).architecture == MINUTE


def test_a_configuration_beside_an_archive_need_not_be_its_own(minute_archive: Path) -> None:
    put(minute_archive.parent, "config.json", GELU)
    try:
        assert open_checkpoint(minute_archive).told == ""
    finally:
        minute_archive.with_name("config.json").unlink()


# ------------------------------------------------------------------ records


def write_run(path: Path, weights: Mapping[str, torch.Tensor], name: object) -> None:
    path.write_bytes(saved({"epoch": 3, "name": name, "state_dict": dict(weights)}))


RN50 = ARCHITECTURES["RN50"]


def test_the_name_of_a_training_run_can_identify_a_configuration() -> None:
    found, question = told.of_run(RUN.format("RN50-quickgelu"), RN50)
    assert found == Told(RN50, "the name of its training run, with open_clip's RN50-quickgelu")
    assert question == ""
    found, question = told.of_run(RUN.replace("0.0005", "5e-05").format("RN50"), RN50)
    assert found is None
    assert question == (
        "its record says that it was trained as open_clip's RN50, but does not say whether with "
        "--force-quick-gelu"
    )


@pytest.mark.parametrize("name", ["my-run", 3, None, RUN.format("RN51"), "model_RN50"])
def test_an_unknown_run_name_identifies_nothing(name: object) -> None:
    assert told.of_run(name, RN50) == (None, "")
    assert told.telling(Path("x"), RN50, None, {"name": name}, archive=False) == (None, "")


def test_a_run_may_have_had_images_of_another_size() -> None:
    record = {"name": RUN.format("RN50-quickgelu")}
    larger = replace(RN50, image_resolution=256, context_length=32)
    for found in (RN50, larger):
        taken, _ = told.telling(Path("x"), found, None, record, archive=False)
        assert taken is not None
        assert taken.architecture == found


@pytest.mark.parametrize(
    "name", ["RN50", "RN50-quickgelu", RUN.format("RN50"), RUN.format("RN50-quickgelu")]
)
def test_a_record_that_names_a_model_of_other_sizes_says_which(name: str) -> None:
    other = replace(RN50, text_layers=3)
    nothing, why = told.telling(Path("x"), other, None, {"name": name}, archive=False)
    assert nothing is None
    assert "RN50" in why
    assert why.endswith(", whose sizes differ: text layers 12 in place of 3")


def test_the_name_of_a_run_shows_nothing_and_a_configuration_beside_it_does(
    weights: Path,
) -> None:
    sizes = {"name": "ViT-B/32"}
    nothing, why = told.telling(weights, ARCHITECTURES["ViT-B/32"], None, sizes, archive=False)
    assert nothing is None
    assert why == "its record has the name ViT-B/32, which a user may choose freely for a run"
    put(weights.parent, "config.json", GELU)
    found, why = told.telling(weights, MINUTE, None, sizes, archive=False)
    assert (found, why) == (Told(GELU, "the config.json beside it"), "")


def test_a_training_checkpoint_of_open_clip_is_recognised_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "epoch_3.pt"
    for name in (RUN.format("ViT-B-32-quickgelu"), "ViT-B-32"):
        write_run(path, minute_weights(), name)
        found = open_checkpoint(path)
        assert (found.told, found.architecture) == ("", MINUTE)
        with pytest.raises(
            ArchitectureError,
            match=r"its record names open_clip's ViT-B-32.*, whose sizes differ: image layers 12",
        ):
            open_pair(path)


# ------------------------------------------------------------------ what clipcheck writes

OTHER = [
    GELU,
    MINUTE.with_blocks(head_width=16, epsilon=1e-6, activation=Activation.GELU_TANH),
    MINUTE_RESNET.with_blocks(head_width=32, activation=Activation.GELU),
    MINUTE.with_blocks(mlp_ratio=2.5),
]


@pytest.mark.parametrize("form", [Format.SAFETENSORS, Format.ARCHIVE])
@parametrize("architecture", OTHER, ids=Architecture.departures)
def test_written_files_record_their_architecture(
    tmp_path: Path, architecture: Architecture, form: Format
) -> None:
    path = tmp_path / "written"
    write(architecture, synthesize(architecture), path, form)
    found = open_checkpoint(path)
    assert (found.architecture, found.told) == (architecture, "its own metadata")


def test_a_released_archive_has_no_record_of_its_own(minute_archive: Path) -> None:
    found = open_checkpoint(minute_archive)
    assert found.records is not None
    assert not [name for name in found.records.names() if name.startswith("extra/")]


def altered() -> Iterator[str]:
    yield from ("", "{}", "[]", "3", '{"image": {}, "text": {}}', "[" * 10**5)
    sound = json.loads(told.encode(MINUTE))
    for place, value in (
        ("head_width", 48),
        ("head_width", 0),
        ("head_width", "64"),
        ("activation", "relu"),
        ("activation", []),
        ("epsilon", 0),
        ("epsilon", -1e-5),
        ("epsilon", True),
    ):
        yield json.dumps({**sound, "text": {**sound["text"], place: value}})


def test_altered_metadata_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "altered.safetensors"
    for text in altered():
        save_file(minute_weights(), path, metadata={told.METADATA: text})
        with pytest.raises(ArchitectureError, match="its metadata was altered"):
            open_pair(path)
