"""Folders for transformers and open_clip, loaded by these libraries themselves."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from clipcheck.checkpoints.architecture import BUFFERS
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.keymaps import Layout, from_layout
from clipcheck.errors import DamagedError, NotFiniteError, OutputError, UnavailableError
from clipcheck.inputs.preprocess import transform
from clipcheck.inputs.tokenizer import tokenize
from clipcheck.writers import directories
from clipcheck.writers.directories import write_open_clip, write_transformers
from conftest import SeededArchive
from tests.oracles import open_clip
from tests.samples import Weights, minute_weights, saved

Write = Callable[..., None]
writers = pytest.mark.parametrize(
    ("write", "form"),
    [(write_transformers, Format.TRANSFORMERS), (write_open_clip, Format.OPEN_CLIP)],
    ids=["transformers", "open_clip"],
)


def minute(folder: Path, weights: Weights | None = None) -> Checkpoint:
    path = folder / "weights"
    path.write_bytes(saved(minute_weights() if weights is None else weights))
    return open_checkpoint(path)


def assert_same_weights(found: Any, checkpoint: Checkpoint) -> None:
    expected = {key: t for key, t in checkpoint.tensors.items() if key not in BUFFERS}
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert same_bits(found[key].contiguous(), tensor.to(found[key].dtype)), key


@pytest.fixture(scope="module")
def tiny(seeded_archive: SeededArchive) -> Checkpoint:
    return open_checkpoint(seeded_archive("tiny-vit"))


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory, tiny: Checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("written") / "hf"
    write_transformers(tiny, folder)
    return folder


# ------------------------------------------------------------------ loaded by the libraries


@writers
@pytest.mark.parametrize("empty", [False, True], ids=["new", "empty"])
def test_a_folder_comes_back_bit_for_bit(
    tmp_path: Path, write: Write, form: Format, empty: bool
) -> None:
    source = minute(tmp_path)
    folder = tmp_path / "out"
    if empty:
        folder.mkdir()
    write(source, folder)
    found = open_checkpoint(folder)
    assert (found.format, found.architecture) == (form, source.architecture)
    assert_same_weights(found.tensors, source)
    assert {key: t.dtype for key, t in found.tensors.items()} == {
        key: t.dtype for key, t in source.tensors.items() if key not in BUFFERS
    }


def test_transformers_loads_it_with_these_weights(hf: Path, tiny: Checkpoint) -> None:
    model, report = transformers.CLIPModel.from_pretrained(
        hf, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    held = from_layout(model.state_dict(), Layout.TRANSFORMERS, "model")
    assert_same_weights(held, tiny)


def test_transformers_loads_it_in_the_dtype_of_its_weights(hf: Path) -> None:
    assert transformers.CLIPConfig.from_pretrained(hf).dtype == torch.float16


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_open_clip_loads_it_with_these_weights(
    tmp_path: Path, seeded_archive: SeededArchive, name: str
) -> None:
    source = open_checkpoint(seeded_archive(name))
    write_open_clip(source, tmp_path / "oc")
    model, preprocess = open_clip().create_model_from_pretrained(f"local-dir:{tmp_path / 'oc'}")
    assert_same_weights(model.state_dict(), source)
    image = picture()
    ours = transform(source.architecture.image_resolution)
    assert torch.equal(preprocess(image), ours(image))


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_its_image_processor_is_ours(hf: Path, tiny: Checkpoint) -> None:
    from transformers import CLIPProcessor

    processor = CLIPProcessor.from_pretrained(hf)
    found = processor(images=picture(), return_tensors="pt")["pixel_values"][0]
    ours = transform(tiny.architecture.image_resolution)(picture())
    assert found.shape == ours.shape
    # It resizes tensors where ours resizes Pillow images; the resizing differs by a grey level.
    assert (found - ours).abs().max() < 1.5 / 255 / 0.26


TEXTS = [
    "a photo of a cat",
    "Two DOGS, and 3 birds!",
    "it's the  crowd's\tpark?",
    "naïve café: 100% 🐈",
    "",
    "supercalifragilistic " * 5,
]


@pytest.mark.parametrize("text", TEXTS)
def test_its_tokenizer_is_ours(hf: Path, text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(hf)
    assert tokenizer.model_max_length == 77
    found = tokenizer(text)["input_ids"]
    assert found == [token for token in tokenize(text)[0].tolist() if token]


def test_all_ids_have_a_name_of_their_own(hf: Path) -> None:
    ids = json.loads((hf / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(ids.values()) == list(range(49408))
    assert (ids["a"], ids["cat</w>"], ids["<|endoftext|>"]) == (64, 2368, 49407)


def test_without_the_released_vocabulary_there_is_no_tokenizer(tmp_path: Path) -> None:
    write_transformers(minute(tmp_path), tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_a_resnet_cannot_go_to_transformers(tmp_path: Path, seeded_archive: SeededArchive) -> None:
    source = open_checkpoint(seeded_archive("tiny-resnet"))
    with pytest.raises(UnavailableError, match=r"no ModifiedResNet: .*\. Use open_clip"):
        write_transformers(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@writers
def test_what_training_code_leaves_out_or_adds_makes_no_difference(
    tmp_path: Path, write: Write, form: Format
) -> None:
    weights = {key: t for key, t in minute_weights().items() if key not in BUFFERS}
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    # Two keys of one tensor, and one that is not laid out in order.
    weights["ln_final.bias"] = weights["visual.ln_post.bias"]
    weights["visual.proj"] = weights["visual.proj"].t().contiguous().t()
    write(minute(tmp_path, weights), tmp_path / "out")
    found = open_checkpoint(tmp_path / "out").tensors
    assert found["logit_scale"].shape == ()
    assert torch.equal(found["visual.proj"], weights["visual.proj"])
    assert torch.equal(found["ln_final.bias"], weights["ln_final.bias"])


# ------------------------------------------------------------------ whole or not at all


@writers
@pytest.mark.parametrize("occupied", ["file", "folder"])
def test_an_existing_folder_is_not_changed(
    tmp_path: Path, write: Write, form: Format, occupied: str
) -> None:
    folder = tmp_path / "out"
    if occupied == "file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / "mine").write_text("mine")
    with pytest.raises(OutputError, match=r"out: cannot be written \(it is .*, and was not ch"):
        write(minute(tmp_path), folder)
    kept = folder if occupied == "file" else folder / "mine"
    assert kept.read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "weights"]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@writers
def test_an_error_of_the_judge_prevents_the_folder(
    tmp_path: Path, write: Write, form: Format
) -> None:
    seen = []

    def judge(folder: Path) -> None:
        seen.append(open_checkpoint(folder).format)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(minute(tmp_path), tmp_path / "out", judge=judge)
    assert seen == [form]
    assert left(tmp_path) == ["weights"]


@writers
@pytest.mark.parametrize("change", ["value", "missing"])
def test_weights_that_do_not_come_back_are_an_error(
    tmp_path: Path, write: Write, form: Format, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = directories.open_checkpoint

    def other(folder: Path) -> Checkpoint:
        found = usual(folder)
        if change == "value":
            found.tensors["ln_final.bias"][0] += 1
        else:
            del found.tensors["ln_final.bias"]  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(directories, "open_checkpoint", other)
    with pytest.raises(OutputError, match=r"'ln_final\.bias' differs when it is read back"):
        write(minute(tmp_path), tmp_path / "out")
    assert left(tmp_path) == ["weights"]


@writers
def test_a_checkpoint_that_is_not_sound_is_not_written(
    tmp_path: Path, write: Write, form: Format
) -> None:
    weights = minute_weights()
    weights["ln_final.bias"][0] = float("nan")
    with pytest.raises(NotFiniteError):
        write(minute(tmp_path, weights), tmp_path / "out")
    path = tmp_path / "weights"
    data = bytearray(saved(minute_weights()))
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError):
        write(open_checkpoint(path), tmp_path / "out")
    assert left(tmp_path) == ["weights"]


@writers
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space left")]
)
def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, write: Write, form: Format, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match=r"cannot be written \(.*[Nn]o space left"):
        write(minute(tmp_path), tmp_path / "out")
    assert left(tmp_path) == ["weights"]


@writers
def test_a_folder_that_is_not_there_cannot_have_one_in_it(
    tmp_path: Path, write: Write, form: Format
) -> None:
    with pytest.raises(OutputError, match=r"the folder .*a' does not exist"):
        write(minute(tmp_path), tmp_path / "a" / "b")


@writers
def test_others_may_read_it_as_far_as_the_umask_lets_them(
    tmp_path: Path, write: Write, form: Format
) -> None:
    usual = os.umask(0o027)
    try:
        write(minute(tmp_path), tmp_path / "out")
    finally:
        os.umask(usual)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    for file in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o640, file.name


def test_two_writers_at_once_are_not_mixed(tmp_path: Path) -> None:
    def other(_: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("theirs")

    with pytest.raises(OutputError, match="it is not empty"):
        write_open_clip(minute(tmp_path), tmp_path / "out", judge=other)
    assert left(tmp_path / "out") == ["theirs"]


def test_what_was_read_from_a_folder_can_be_written_again(tmp_path: Path) -> None:
    source = minute(tmp_path)
    write_transformers(source, tmp_path / "hf")
    write_open_clip(open_checkpoint(tmp_path / "hf"), tmp_path / "oc")
    write_transformers(open_checkpoint(tmp_path / "oc"), tmp_path / "again")
    assert open_checkpoint(tmp_path / "again").sha256 == open_checkpoint(tmp_path / "hf").sha256
    assert load_file(tmp_path / "oc" / "open_clip_model.safetensors").keys() == {
        key for key in source.tensors if key not in BUFFERS
    }
