"""Folders of transformers and open_clip, as the libraries write them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clipcheck.checkpoints.architecture import Activation, Architecture, ViT
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, same_bits
from clipcheck.checkpoints.configs_of_open_clip import open_clip_config
from clipcheck.checkpoints.configs_of_transformers import transformers_config
from clipcheck.checkpoints.directories import read
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keymaps import Layout, to_layout
from clipcheck.errors import (
    ArchitectureError,
    CheckpointError,
    ClipcheckError,
    DamagedError,
    UnknownFormatError,
    UnsafeError,
)
from tests.oracles import open_clip
from tests.samples import MINUTE, Weights, minute_bytes, minute_weights, saved


@pytest.fixture(scope="module")
def hf_model() -> Any:
    """Return the weights as a model of transformers, so that it writes these."""
    config = transformers.CLIPConfig(**transformers_config(MINUTE))
    model = transformers.CLIPModel(config)
    weights = to_layout(minute_weights(), Layout.TRANSFORMERS)
    model.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    return model


@pytest.fixture(scope="module")
def hf_original(tmp_path_factory: pytest.TempPathFactory, hf_model: Any) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "model"
    hf_model.save_pretrained(folder)
    return folder


@pytest.fixture
def hf(hf_original: Path, tmp_path: Path) -> Path:
    """Return a folder from `CLIPModel.save_pretrained`, which tests may alter."""
    return Path(shutil.copytree(hf_original, tmp_path / "hf"))


@pytest.fixture
def oc(tmp_path: Path) -> Path:
    """Return a folder as open_clip has them on the hub, which tests may alter."""
    folder = tmp_path / "oc"
    folder.mkdir()
    weights = to_layout(minute_weights(), Layout.OPEN_CLIP)
    save_file(weights, folder / "open_clip_model.safetensors")
    write_json(folder / "open_clip_config.json", {"model_cfg": open_clip_config(MINUTE)})
    return folder


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    write_json(path, value)


def expected(dtype: torch.dtype | None = torch.float32) -> Weights:
    weights = to_layout(minute_weights(), Layout.OPEN_CLIP)
    return weights if dtype is None else {key: t.to(dtype) for key, t in weights.items()}


def assert_minute(checkpoint: Checkpoint, form: Format, weights: Weights) -> None:
    assert (checkpoint.format, checkpoint.architecture) == (form, MINUTE)
    checkpoint.verify()
    assert checkpoint.tensors.keys() == weights.keys()
    for key, tensor in weights.items():
        assert same_bits(checkpoint.tensors[key].contiguous(), tensor), key


# ------------------------------------------------------------------ as the libraries write them


def test_what_transformers_saves_is_read(hf: Path) -> None:
    assert_minute(open_checkpoint(hf), Format.TRANSFORMERS, expected())


def test_what_transformers_saves_in_several_files_is_read(hf_model: Any, tmp_path: Path) -> None:
    hf_model.save_pretrained(tmp_path, max_shard_size="200KB")
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.files) > 4
    assert_minute(checkpoint, Format.TRANSFORMERS, expected())


def as_pickle(folder: Path) -> None:
    """Save as a pickle instead of safetensors, like older versions."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_pickles(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts: list[Weights] = [{}, {}]
    for number, (key, tensor) in enumerate(weights.items()):
        parts[number % 2][key] = tensor
    for number, part in enumerate(parts):
        torch.save(part, folder / f"pytorch_model-{number}.bin")
    names = {key: f"pytorch_model-{n}.bin" for n, part in enumerate(parts) for key in part}
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": names})


def with_positions(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(weights, folder / "model.safetensors")


def linked(folder: Path) -> None:
    """Link all files to another folder, as the hub's cache does."""
    blobs = folder.parent / "blobs"
    folder.rename(blobs)
    folder.mkdir()
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(os.path.relpath(file, folder))


def beside_open_clip(folder: Path) -> None:
    write_json(folder / "open_clip_config.json", {"model_cfg": {}})


KINDS: dict[str, Callable[[Path], None]] = {
    "pickle": as_pickle,
    "pickles": as_pickles,
    "with positions": with_positions,
    "linked": linked,
    "beside open_clip's": beside_open_clip,
}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_of_older_versions_and_other_tools_are_read(hf: Path, kind: str) -> None:
    KINDS[kind](hf)
    assert_minute(open_checkpoint(hf), Format.TRANSFORMERS, expected())
    assert_minute(open_checkpoint(str(hf)), Format.TRANSFORMERS, expected())


def test_open_clips_folder_is_read(oc: Path) -> None:
    assert_minute(open_checkpoint(oc), Format.OPEN_CLIP, expected(None))


@pytest.mark.parametrize("custom", [False, True], ids=["plain", "custom_text"])
@pytest.mark.parametrize(
    "name", ["open_clip_pytorch_model.bin", "pytorch_model.bin", "model.safetensors"]
)
def test_what_open_clip_saves_is_read(oc: Path, name: str, custom: bool) -> None:
    model = open_clip().model
    cls = model.CustomTextCLIP if custom else model.CLIP
    held = cls(**open_clip_config(MINUTE))
    held.load_state_dict(to_layout(expected(), Layout.CUSTOM_TEXT if custom else Layout.OPEN_CLIP))
    (oc / "open_clip_model.safetensors").unlink()
    save = save_file if name.endswith("safetensors") else torch.save
    save(held.state_dict(), oc / name)
    config = oc / "open_clip_config.json"
    change_json(config, lambda value: value["model_cfg"].update(custom_text=custom))
    assert_minute(open_checkpoint(oc), Format.OPEN_CLIP, expected())


def test_open_clips_folder_may_have_the_config_of_another_model(oc: Path) -> None:
    write_json(oc / "config.json", {"model_type": "timm"})
    assert open_checkpoint(oc).format is Format.OPEN_CLIP


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", [Format.STATE_DICT, Format.SAFETENSORS])
def test_a_single_file_may_have_any_layout(
    tmp_path: Path, form: Format, prefix: str, layout: Layout
) -> None:
    weights = to_layout(minute_weights(), layout)
    named = {f"{prefix}{key}": tensor.contiguous() for key, tensor in weights.items()}
    path = tmp_path / "weights"
    if form is Format.STATE_DICT:
        torch.save({"state_dict": named}, path)
    else:
        save_file(named, path)
    whole = minute_weights() if layout is Layout.REFERENCE else expected(None)
    assert_minute(open_checkpoint(path), form, whole)


# ------------------------------------------------------------------ what it is known by


def test_the_hash_of_a_folder_is_that_of_a_list_of_hashes(hf: Path) -> None:
    checkpoint = open_checkpoint(hf)
    names = ["config.json", "model.safetensors"]
    sums = [hashlib.sha256((hf / name).read_bytes()).hexdigest() for name in names]
    lines = "".join(f"{found}  {name}\n" for found, name in zip(sums, names, strict=True))
    assert checkpoint.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert checkpoint.size == sum((hf / name).stat().st_size for name in names)


def test_only_files_of_the_model_count_in_the_hash(hf: Path, tmp_path: Path) -> None:
    first = open_checkpoint(hf).sha256
    (hf / "README.md").write_text("about it")
    moved = hf.rename(tmp_path / "elsewhere")
    assert open_checkpoint(moved).sha256 == first
    change_json(moved / "config.json", lambda value: value.update(note="another"))
    assert open_checkpoint(moved).sha256 != first


def test_checksums_of_pickled_weights_are_compared(hf: Path) -> None:
    as_pickles(hf)
    file = hf / "pytorch_model-1.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    checkpoint = open_checkpoint(hf)
    with pytest.raises(DamagedError, match=r"pytorch_model-1\.bin: the record"):
        checkpoint.verify()


# ------------------------------------------------------------------ what is wrong

INDEX = "model.safetensors.index.json"


def indexed(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    write_json(folder / INDEX, {"weight_map": weight_map})


def whole_index(folder: Path) -> dict[str, str]:
    return dict.fromkeys(load_file(folder / "model.safetensors"), "part.safetensors")


def more_in_index(folder: Path) -> None:
    indexed(folder, {**whole_index(folder), "x": "part.safetensors"})


def less_in_index(folder: Path) -> None:
    names = whole_index(folder)
    del names["logit_scale"]
    indexed(folder, names)


def twice(folder: Path) -> None:
    names = whole_index(folder)
    save_file({"logit_scale": torch.ones(())}, folder / "other.safetensors")
    indexed(folder, {**names, "logit_scale": "other.safetensors"})


def relu(folder: Path) -> None:
    change_json(folder / "config.json", lambda c: c["text_config"].update(hidden_act="relu"))


def wider(folder: Path) -> None:
    other = {"vocab_size": 101, "eos_token_id": 100}
    change_json(folder / "config.json", lambda c: c["text_config"].update(other))


def other_weights(folder: Path) -> None:
    save_file({"text_model.x": torch.ones(1)}, folder / "model.safetensors")


def archived(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(minute_bytes(Format.ARCHIVE))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def deep(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)


class Command:
    """Pickles to a call of ``os.system``."""

    def __reduce__(self) -> Any:
        return os.system, ("touch marked-by-a-pickle",)


def unsafe(folder: Path) -> None:
    as_pickle(folder)
    (folder / "pytorch_model.bin").write_bytes(saved({"x": Command()}))


def text(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_bytes(content) and None


def index_of(weight_map: object) -> Callable[[Path], None]:
    return lambda folder: indexed(folder, weight_map)


WRONG: dict[str, tuple[Callable[[Path], object], type[CheckpointError], str]] = {
    "empty": (
        lambda folder: [file.unlink() for file in folder.iterdir()],
        UnknownFormatError,
        r"hf: expected a file, or a folder with config\.json or open_clip_config\.json; found a "
        r"directory without either\. Give",
    ),
    "no config": (no_config, UnknownFormatError, "a directory without either"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        DamagedError,
        r"hf: it has config\.json, but no weights: expected model\.safetensors, .*git lfs pull",
    ),
    "a pointer in place of weights": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs..."),
        UnknownFormatError,
        r"model\.safetensors: .* found a Git LFS pointer",
    ),
    "weights cut off": (
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
        CheckpointError,
        r"model\.safetensors: ",
    ),
    "a folder in place of weights": (
        lambda folder: [
            (folder / "model.safetensors").unlink(),
            (folder / "model.safetensors").mkdir(),
        ],
        DamagedError,
        "but no weights",
    ),
    "an archive in place of weights": (archived, UnknownFormatError, "found a TorchScript archive"),
    "other weights": (other_weights, ArchitectureError, r"hf: .*unexpected: text_model\.x"),
    "code in its pickle": (unsafe, UnsafeError, "nothing was run"),
    "ReLU": (
        relu,
        ArchitectureError,
        r"config\.json: .*text_config\.hidden_act is 'relu' in place",
    ),
    "other dimensions": (
        wider,
        ArchitectureError,
        r"hf: its weights do not fit the model of its config\.json, which has "
        "vocabulary size 101 in place of 100",
    ),
    "no JSON": (text(b"{"), DamagedError, r"config\.json: it is not JSON \("),
    "not UTF-8": (text(b"\xff\xfe\x00"), DamagedError, r"config\.json: it is not JSON \("),
    "an empty file": (text(b""), DamagedError, r"config\.json: it is not JSON \("),
    "deep JSON": (deep, DamagedError, r"config\.json: it is not JSON \("),
    "a long number": (text(b'{"a": ' + b"9" * 5000 + b"}"), DamagedError, "it is not JSON"),
    "a file that is too long": (
        text(b'{"a": "' + b"b" * (33 << 20) + b'"}'),
        DamagedError,
        "expected a JSON object, it is too long",
    ),
    "a list": (text(b"[]"), DamagedError, "expected a JSON object, it is a list"),
    "a string": (text(b'"clip"'), DamagedError, "expected a JSON object, it is a str"),
    "an unsupported model type": (
        text(b'{"model_type": "bert"}'),
        ArchitectureError,
        "its model_type 'bert' is not supported",
    ),
    "a list as model type": (
        text(b'{"model_type": ["clip"]}'),
        ArchitectureError,
        r"its model_type \['clip'\] is not supported",
    ),
    "no towers": (
        text(b'{"model_type": "clip"}'),
        ArchitectureError,
        "expected an object under 'text_config', found nothing",
    ),
    "no weight map": (index_of(None), DamagedError, f"{INDEX}: it has no 'weight_map'"),
    "a list as weight map": (index_of(["a"]), DamagedError, "it has no 'weight_map'"),
    "numbers in the weight map": (
        index_of({"a": 1}),
        DamagedError,
        "expected under 'a' the name of a file beside it, found 1",
    ),
    "traversal": (
        index_of({"a": "../other/model.safetensors"}),
        DamagedError,
        r"the name of a file beside it, found '\.\./other/model\.safetensors'",
    ),
    "an absolute name": (index_of({"a": "/etc/passwd"}), DamagedError, "found '/etc/passwd'"),
    "the folder itself": (index_of({"a": "."}), DamagedError, r"found '\.'"),
    "the parent folder": (index_of({"a": ".."}), DamagedError, r"found '\.\.'"),
    "a long name": (index_of({"a": "a" * 300}), CheckpointError, r"cannot be read \(File name too"),
    "a lone surrogate": (index_of({"a": "\ud800"}), DamagedError, r"file '\\ud800', which"),
    "an empty name": (index_of({"a": ""}), DamagedError, "found ''"),
    "a name with a null": (index_of({"a": "a\0b"}), DamagedError, "the name of a file beside it"),
    "a missing file": (
        index_of({"a": "other.safetensors"}),
        DamagedError,
        f"hf: the file 'other.safetensors', which {INDEX} names, is missing",
    ),
    "a tensor only in the index": (
        more_in_index,
        DamagedError,
        r"part\.safetensors has not the tensor 'x'\. Copy",
    ),
    "a tensor missing from the index": (
        less_in_index,
        DamagedError,
        r"part\.safetensors has, against the index, the tensor 'logit_scale'\. Copy",
    ),
    "a tensor in two files": (twice, DamagedError, "against the index, the tensor 'logit_scale'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_of_a_folder_name_the_file(
    hf: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hf.parent)
    change, error, message = WRONG[case]
    change(hf)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(hf)
    assert str(caught.value).startswith(str(hf))
    assert not (hf.parent / "marked-by-a-pickle").exists()


@pytest.mark.parametrize("model_cfg", [None, [], "ViT-B-32"])
def test_an_open_clip_config_without_a_model_is_refused(oc: Path, model_cfg: object) -> None:
    write_json(oc / "open_clip_config.json", {"model_cfg": model_cfg})
    with pytest.raises(ArchitectureError, match="expected an object under 'model_cfg', found"):
        open_checkpoint(oc)


def test_a_folder_computes_what_its_configuration_says(hf: Path, oc: Path) -> None:
    gelu = MINUTE.with_blocks(activation=Activation.GELU)
    change_json(oc / "open_clip_config.json", lambda value: value["model_cfg"].pop("quick_gelu"))
    found = open_checkpoint(oc)
    assert (found.architecture, found.told) == (gelu, "its open_clip_config.json")
    for tower in ("text_config", "vision_config"):
        change_json(hf / "config.json", lambda value, t=tower: value[t].update(hidden_act="gelu"))
    found = open_checkpoint(hf)
    assert (found.architecture, found.told) == (gelu, "its config.json")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_an_error(hf: Path) -> None:
    hf.chmod(0)
    try:
        with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
            open_checkpoint(hf)
    finally:
        hf.chmod(0o700)


def test_a_config_that_cannot_be_read_is_an_error(
    hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path.open

    def failing(path: Path, *arguments: Any) -> Any:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied")
        return usual(path, *arguments)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(Permission denied"):
        read(hf)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_altered_configuration_is_accepted_or_refused_and_nothing_else(
    hf: Path, data: st.DataObject
) -> None:
    file = hf / "config.json"
    usual = file.read_bytes()
    position = data.draw(st.integers(0, len(usual) - 1))
    byte = data.draw(st.integers(0, 255))
    file.write_bytes(usual[:position] + bytes([byte]) + usual[position + 1 :])
    try:
        found = open_checkpoint(hf).architecture
        # What a key that is misspelled was to say has transformers' own default.
        assert found == MINUTE or _blocks(found) == _blocks_of_transformers(file)
    except ClipcheckError as error:
        assert str(error).startswith(str(hf))  # noqa: PT017
    finally:
        file.write_bytes(usual)


def _blocks(architecture: Architecture) -> list[tuple[int, float, str]]:
    """Width of a head, epsilon and activation of each tower."""
    assert isinstance(architecture.vision, ViT)
    blocks = (architecture.text_blocks, architecture.vision.blocks)
    return [(each.head_width, each.epsilon, each.activation.value) for each in blocks]


def _blocks_of_transformers(file: Path) -> list[tuple[int, float, str]]:
    from transformers import CLIPConfig

    config = CLIPConfig(**json.loads(file.read_text("utf-8")))
    towers = (config.text_config, config.vision_config)
    return [
        (each.hidden_size // each.num_attention_heads, each.layer_norm_eps, each.hidden_act)
        for each in towers
    ]
