from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clipcheck.backends import programs
from clipcheck.checkpoints import opening
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.opening import open_pair, open_reference, open_subject, weights_of
from clipcheck.errors import CheckpointError, UnknownFormatError, UnknownModelError, UsageError
from tests.samples import minute_bytes, minute_config, minute_weights, onnx_naming, saved

WEIGHTS = minute_weights()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    return path


@pytest.fixture(params=[Format.PT2, Format.ONNX])
def program(request: pytest.FixtureRequest, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that is taken for a program; tests of `kind_of` check what is one."""
    path = archive.with_suffix(".bin" if request.param is Format.PT2 else ".onnx")
    onnx_naming(path)
    kinds = {path: request.param}
    monkeypatch.setattr(opening, "kind_of", kinds.get)
    return path


def test_a_checkpoint_is_opened_as_one(archive: Path) -> None:
    found = open_subject(archive)
    assert isinstance(found, Checkpoint)
    assert found.path == archive
    assert open_reference(found, None) is None
    assert weights_of(found, None) is found


def test_only_the_kind_of_a_program_is_read(program: Path) -> None:
    found = open_subject(program)
    assert isinstance(found, Program)
    assert found.path == program
    with pytest.raises(ValueError, match="no weights of its own"):
        weights_of(found, None)


def test_a_name_that_is_neither_is_refused_as_everywhere(tmp_path: Path) -> None:
    for open_it in (open_subject, open_checkpoint):
        with pytest.raises(UnknownModelError):
            open_it(str(tmp_path / "nothing.pt"))


def test_the_reference_of_a_program_is_the_checkpoint_beside_it(
    program: Path, archive: Path
) -> None:
    subject = open_subject(program)
    found = open_reference(subject, None)
    assert found is not None
    assert found.path == archive
    assert weights_of(subject, found) is found


def test_safetensors_are_looked_for_first(program: Path, archive: Path) -> None:
    path = archive.with_suffix(".safetensors")
    path.write_bytes(minute_bytes(Format.SAFETENSORS))
    found = open_reference(open_subject(program), None)
    assert found is not None
    assert found.path == path


def test_the_program_itself_is_not_the_checkpoint_beside_it(program: Path, archive: Path) -> None:
    archive.unlink()
    with pytest.raises(UsageError) as caught:
        open_reference(open_subject(program), None)
    assert str(program) in str(caught.value)
    assert "none of model.safetensors, model.pt, model.pth, model.bin" in str(caught.value)
    assert "--reference CHECKPOINT" in caught.value.remedy


def test_the_requested_reference_is_used(archive: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(minute_bytes(Format.SAFETENSORS))
    subject = open_subject(archive)
    found = open_reference(subject, other)
    assert found is not None
    assert found.path == other
    assert weights_of(subject, found) is subject


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Return a training checkpoint with two models."""
    path = tmp_path / "several.ckpt"
    other = {key: tensor.flip(0) if tensor.ndim else tensor for key, tensor in WEIGHTS.items()}
    path.write_bytes(saved({"model": WEIGHTS, "ema": {"module": other}}))
    return path


def names_of(*found: Checkpoint | Program | None) -> list[str | None]:
    return [each.origin.name if isinstance(each, Checkpoint) else None for each in found]


def test_a_key_may_belong_to_either_file(several: Path, archive: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    one.write_bytes(minute_bytes(Format.SAFETENSORS))
    alone = open_pair(several, key="ema", architecture=minute_config(tmp_path))
    assert names_of(*alone) == ["ema.module", None]
    assert names_of(*open_pair(several, one, key="ema")) == ["ema.module", "."]
    assert names_of(*open_pair(one, several, key="model")) == [".", "model"]
    assert names_of(*open_pair(archive, several, key="model")) == [".", "model"]
    config = minute_config(tmp_path)
    twice = open_pair(several, several, key="model", architecture=config)
    assert names_of(*twice) == ["model", "model"]


def test_a_key_that_neither_file_has_is_refused(archive: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    one.write_bytes(minute_bytes(Format.SAFETENSORS))
    with pytest.raises(UsageError, match=r"under 'ema' in one of the files, found '\.' in .*one\."):
        open_pair(one, archive, key="ema")
    with pytest.raises(UsageError, match=r"several models for --key, found a TorchScript archive"):
        open_pair(archive, key="ema")


def test_a_programs_key_is_that_of_the_checkpoint_beside_it(
    program: Path, archive: Path, several: Path
) -> None:
    archive.unlink()
    several.rename(program.with_suffix(".pth"))
    config = minute_config(program.parent)
    subject, reference = open_pair(program, key="model", architecture=config)
    assert names_of(subject, reference) == [None, "model"]
    with pytest.raises(CheckpointError, match="expected one CLIP model, found 2"):
        open_pair(program)


def test_programs_of_different_models_have_different_cache_keys(several: Path) -> None:
    keys = []
    for name in ("model", "ema"):
        checkpoint = open_checkpoint(several, key=name)
        source: Any = SimpleNamespace(
            checkpoint=checkpoint, device=torch.device("cpu"), dtype="float32"
        )
        keys.append(programs.key_of(source))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("data", [b"GIF89a", b""])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt", ".safetensors", ""])
def test_the_error_for_a_foreign_file_lists_all_that_can_be_judged(
    data: bytes, suffix: str, archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(data)
    with pytest.raises(UnknownFormatError, match=r"or a program \(ONNX, torch\.export, "):
        open_subject(path)
    with pytest.raises(UnknownFormatError, match=r"by torch\.save, or a safetensors file; "):
        open_reference(open_subject(archive), path)


def test_a_program_is_no_reference(program: Path, archive: Path) -> None:
    with pytest.raises(UsageError, match="expected a reference with weights, found a program"):
        open_reference(open_subject(archive), program)
