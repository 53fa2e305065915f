from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcheck.errors import OutputError, ReplayError
from clipcheck.gates.tolerances import Allclose
from clipcheck.harness.search import saved
from clipcheck.harness.search.saved import read, write
from clipcheck.inputs.examples import Example

DESCRIBED = {
    "checkpoint": "/models/a.pt",
    "sha256": "ab" * 32,
    "device": "cpu",
    "dtype": "float32",
    "limits": {"atol": 0.01, "rtol": 0.1},
}
PICTURE = Image.frombytes("RGB", (2, 1), bytes(range(6)))
EXAMPLE = Example((PICTURE, Image.new("L", (1, 1), 7)), ("a\n\x00 <b>\u202e", (49406, 5, 49407)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "found", EXAMPLE, DESCRIBED, "It fails.")
    return tmp_path / "found"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("path", [".", "example.json"])
def test_a_saved_input_is_read_back(folder: Path, path: str) -> None:
    found = read(folder / path)
    assert found.example.prompts == EXAMPLE.prompts
    for image, expected in zip(found.example.images, EXAMPLE.images, strict=True):
        assert image.mode == expected.mode
        assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert (found.checkpoint, found.sha256) == ("/models/a.pt", "ab" * 32)
    assert (found.device, found.dtype, found.limits) == ("cpu", "float32", Allclose())


def test_saved_files_are_readable_by_people(folder: Path) -> None:
    assert (folder / "report.txt").read_text() == "It fails.\n"
    with Image.open(folder / "image-1.png") as image:
        assert image.size == (2, 1)
    assert json.loads((folder / "example.json").read_text())["prompts"][1] == [49406, 5, 49407]
    assert names(folder.parent) == ["found"]


def test_an_earlier_saved_input_is_replaced(folder: Path) -> None:
    write(folder, Example(prompts=("b",)), DESCRIBED, "Again.")
    assert read(folder).example == Example(prompts=("b",))
    assert not (folder / "image-1.png").exists()


def test_files_of_others_are_not_replaced(folder: Path) -> None:
    (folder / "notes.txt").write_text("of my own")
    with pytest.raises(OutputError, match="it is not empty, and was not changed"):
        write(folder, Example(prompts=("b",)), DESCRIBED, "Again.")
    saved.remove(folder)
    assert (folder / "notes.txt").read_text() == "of my own"
    assert read(folder).example.prompts == EXAMPLE.prompts


@pytest.mark.parametrize("contents", ["{}", "[]", "{", '{"kind": "of my own"}', "[" * 100_000])
def test_a_folder_with_another_document_is_not_ours(folder: Path, contents: str) -> None:
    assert saved.is_ours(folder)
    (folder / "example.json").write_text(contents)
    assert not saved.is_ours(folder)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match="mine: cannot be written"):
        write(tmp_path / "mine", EXAMPLE, DESCRIBED, "")
    assert names(tmp_path) == ["mine"]
    assert names(tmp_path / "mine") == ["thesis.txt"]


def test_when_it_cannot_be_written_nothing_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Image.Image) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved, "to_png", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(folder, EXAMPLE, DESCRIBED, "")
    assert read(folder).example.prompts == EXAMPLE.prompts
    assert names(folder.parent) == ["found"]


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document.pop(key)


def having(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document.update(values)


BAD = [
    (having(kind="another"), "this file is not one"),
    (having(schema=2), "schema 2; this clipcheck reads schema 1"),
    (without("images"), "the field images is missing"),
    (without("prompts"), "the field prompts is missing"),
    (without("checkpoint"), "the field checkpoint is missing"),
    (without("limits"), "the field limits is missing"),
    (without("sha256"), "the field sha256 is missing"),
    (without("dtype"), "the field dtype is missing"),
    (having(images=[], prompts=[]), "neither an image nor a prompt"),
    (having(images="image-1.png"), "images is a text in place of a list"),
    (having(images=["image-1.png"] * 65), "more than 64 images or prompts"),
    (having(images=["../image-1.png"]), r"a picture is named '../image-1.png'"),
    (having(images=["/etc/passwd"]), "a picture is named '/etc/passwd'"),
    (having(images=[1]), r"images\[0\] is an integer in place of a text"),
    (having(images=["image-9.png"]), "image-9.png cannot be read"),
    (having(prompts=[1]), r"prompts\[0\] is an integer in place of a text or a list"),
    (having(prompts=[[49406, -1]]), "a prompt has numbers that are no ids"),
    (having(prompts=[[49406, 1.5]]), r"prompts\[0\]\[1\] is a number in place of an integer"),
    (having(prompts=[[True, False]]), "is true or false in place of an integer"),
    (having(prompts=[[5]]), "a prompt has 1 ids"),
    (having(prompts=[[5] * 5000]), "a prompt has 5000 ids"),
    (having(dtype="int8"), "dtype is 'int8'"),
    (having(device=3), "device is an integer in place of a text"),
    (having(limits={"atol": -1}), "atol is no number of at least 0"),
    (having(limits={"rtol": True}), "limits.rtol is true or false in place of a number"),
    (having(limits={"rtol": "0.1"}), "limits.rtol is a text in place of a number"),
    (having(backend=None), "backend is null in place of a text"),
    (having(key=3), "key is an integer in place of a text or null"),
    (having(asked_architecture=3), "asked_architecture is an integer in place of a text"),
    (having(reference_checkpoint=3), "reference_checkpoint is an integer in place of a text"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_document_that_is_not_as_written_is_one_error(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    file = folder / "example.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(ReplayError, match=message) as caught:
        read(folder)
    assert caught.value.path == str(file)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "it is no JSON, or cut off"),
        (b"\xff\xfe", "it is no JSON, or cut off"),
        (b"PK\x03\x04 an archive", "no JSON, or cut off"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"[]", "this file is not one"),
        (b" " * (1 << 20) + b"{}", "more than 1,048,576 bytes"),
    ],
)
def test_a_file_of_another_kind_is_one_error(folder: Path, contents: bytes, message: str) -> None:
    (folder / "example.json").write_bytes(contents)
    with pytest.raises(ReplayError, match=message):
        read(folder)


def test_a_picture_that_is_damaged_is_one_error(folder: Path) -> None:
    (folder / "image-1.png").write_bytes((folder / "image-1.png").read_bytes()[:50])
    with pytest.raises(ReplayError, match="its picture cannot be read"):
        read(folder)


def _with_chunk(data: bytes, kind: bytes, contents: bytes) -> bytes:
    """The PNG file with one more chunk behind its first, the checksum right."""
    length = len(contents).to_bytes(4, "big")
    chunk = length + kind + contents + zlib.crc32(kind + contents).to_bytes(4, "big")
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("kind", [b"tRNS", b"PLTE", b"gAMA", b"pHYs", b"iTXt", b"zTXt", b"iCCP"])
def test_a_chunk_that_pillow_does_not_expect_is_one_error_or_none(
    folder: Path, kind: bytes
) -> None:
    path = folder / "image-1.png"
    path.write_bytes(_with_chunk(path.read_bytes(), kind, b""))
    with suppress(ReplayError):
        read(folder)


def test_a_document_of_another_schema_gets_a_short_message(folder: Path) -> None:
    _alter(folder, schema="x" * 100_000)
    with pytest.raises(ReplayError, match="schema 'xxx") as caught:
        read(folder)
    assert len(str(caught.value)) < 500


def _alter(folder: Path, **changes: object) -> None:
    path = folder / "example.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_pipe_is_no_picture(folder: Path) -> None:
    (folder / "image-1.png").unlink()
    os.mkfifo(folder / "image-1.png")
    with pytest.raises(ReplayError, match=r"image-1\.png is no file"):
        read(folder)


def test_a_folder_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="cannot be read"):
        read(tmp_path / "nothing")
    with pytest.raises(ReplayError, match=r"example\.json: expected a failing input"):
        read(tmp_path)


def test_what_was_saved_before_there_were_other_backends_is_of_the_archive(folder: Path) -> None:
    assert (read(folder).backend, read(folder).reference_checkpoint) == ("jit", None)


def test_the_backend_and_the_reference_come_back(tmp_path: Path) -> None:
    described = {
        **DESCRIBED,
        "backend": "transformers:attention=eager",
        "reference": "eager of /models/b.pt",
        "reference_checkpoint": "/models/b.pt",
        "key": "ema",
    }
    write(tmp_path / "found", EXAMPLE, described, "It fails.")
    found = read(tmp_path / "found")
    assert (found.backend, found.reference_checkpoint) == (
        "transformers:attention=eager",
        "/models/b.pt",
    )
    assert found.key == "ema"
