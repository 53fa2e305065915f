from __future__ import annotations

from pathlib import Path

import pytest

from clipcheck.checkpoints import opening
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.opening import open_reference, open_subject, weights_of
from clipcheck.errors import UnknownModelError, UsageError
from tests.samples import minute_bytes, onnx_naming


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    return path


@pytest.fixture(params=[Format.PT2, Format.ONNX])
def program(request: pytest.FixtureRequest, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is taken for a program; what is one is for the tests of `kind_of`."""
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


def test_of_a_program_nothing_is_read_but_what_it_is(program: Path) -> None:
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


def test_the_reference_that_is_asked_for_is_taken(archive: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(minute_bytes(Format.SAFETENSORS))
    subject = open_subject(archive)
    found = open_reference(subject, other)
    assert found is not None
    assert found.path == other
    assert weights_of(subject, found) is subject


def test_a_program_is_no_reference(program: Path, archive: Path) -> None:
    with pytest.raises(UsageError, match="expected a reference with weights, found a program"):
        open_reference(open_subject(archive), program)
