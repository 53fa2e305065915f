from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from clipcheck.checkpoints.architecture import Activation
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.sweep import facts
from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.cost import flops
from clipcheck.sweep.facts import Facts, facts_of
from clipcheck.sweep.jobs import Source
from clipcheck.sweep.ledger import Ledger
from clipcheck.sweep.plan import _content_of_reference
from tests.samples import MINUTE, minute_bytes, minute_config, onnx_naming
from tests.sweep.samples import planned


def test_the_facts_of_a_checkpoint_have_its_hash_its_size_and_its_operations(
    tmp_path: Path,
) -> None:
    path = tmp_path / "minute.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    with Ledger(tmp_path / "ledger") as ledger:
        found = facts_of(path, ledger)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.size == path.stat().st_size
    assert found.flops == flops(MINUTE)


def test_a_file_that_has_not_changed_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"some")
    with Ledger(tmp_path / "ledger") as ledger:
        known = facts_of(path, ledger)
        monkeypatch.setattr(facts, "_looked_into", lambda *_: pytest.fail("it was read"))
        assert facts_of(path, ledger) == known
        monkeypatch.undo()
        stat = path.stat()
        path.write_bytes(b"same")  # as long as before
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert facts_of(path, ledger).sha256 != known.sha256


def test_what_is_no_checkpoint_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(b"PK\x03\x04nothing")
    with Ledger(tmp_path / "ledger") as ledger:
        found = facts_of(path, ledger)
    assert found == Facts(hashlib.sha256(path.read_bytes()).hexdigest(), 11)
    assert found.flops is None


def test_a_missing_file_has_no_facts(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        assert facts_of(tmp_path / "gone.pt", ledger) == Facts()
        (tmp_path / "folder").mkdir()
        assert facts_of(tmp_path / "folder", ledger) == Facts()


def altered(path: Path) -> None:
    """Change the last byte, and restore the modification time."""
    stat = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("which", ["a.data", "sub/b.data", "m.onnx"])
def test_a_byte_of_any_file_of_a_program_makes_it_another(which: str, tmp_path: Path) -> None:
    path = onnx_naming(tmp_path / "m.onnx", "a.data", "sub/b.data")
    with Ledger(tmp_path / "ledger") as ledger:
        known = facts_of(path, ledger)
        assert known.size == path.stat().st_size + 16
        assert facts_of(path, ledger) == known
        altered(tmp_path / which)
        assert facts_of(path, ledger).sha256 not in ("", known.sha256)


def test_data_of_another_name_is_another_program(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        known = facts_of(onnx_naming(tmp_path / "m.onnx", "a.data"), ledger)
        assert facts_of(onnx_naming(tmp_path / "m.onnx", "b.data"), ledger).sha256 != known.sha256


def test_a_program_whose_data_is_missing_is_not_known(tmp_path: Path) -> None:
    path = onnx_naming(tmp_path / "m.onnx", "a.data")
    (tmp_path / "a.data").rename(tmp_path / "elsewhere")
    with Ledger(tmp_path / "ledger") as ledger:
        assert facts_of(path, ledger).sha256 == ""
        (tmp_path / "elsewhere").rename(tmp_path / "a.data")
        assert facts_of(path, ledger).sha256 != ""


@pytest.mark.parametrize("which", ["config.json", "model-2.safetensors"])
def test_a_byte_of_any_file_of_a_folder_makes_it_another(which: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "folder")
    with Ledger(tmp_path / "ledger") as ledger:
        known = facts_of(folder, ledger)
        assert known.flops is not None
        assert facts_of(folder, ledger) == known
        if which == "config.json":
            text = (folder / which).read_text()
            (folder / which).write_text(text.replace("1e-05", "1E-05"))
        else:
            altered(folder / which)
        os.utime(folder / which, ns=(0, 0))  # older than all that was there
        assert facts_of(folder, ledger).sha256 not in ("", known.sha256)


def sharded(folder: Path) -> Path:
    """Write a folder of transformers with its weights in two files."""
    from safetensors.torch import load_file, save_file

    from clipcheck.checkpoints.formats import open_checkpoint
    from clipcheck.writers.directories import write_transformers

    source = folder.with_name("minute.pt")
    source.write_bytes(minute_bytes(Format.ARCHIVE))
    write_transformers(open_checkpoint(source), folder)
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-{1 + number % 2}.safetensors" for number, key in enumerate(whole)}
    for name in set(names.values()):
        save_file({key: t for key, t in whole.items() if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def test_the_checkpoint_beside_a_program_is_what_it_is_compared_with(tmp_path: Path) -> None:
    path = onnx_naming(tmp_path / "m.onnx", "a.data")
    entry = Entry(label="m", source=Source("path", str(path)))
    reference = tmp_path / "m.pt"
    with Ledger(tmp_path / "ledger") as ledger:
        assert _content_of_reference(entry, facts_of(path, ledger), ledger) == ""
        reference.write_bytes(minute_bytes(Format.ARCHIVE))
        found = _content_of_reference(entry, facts_of(path, ledger), ledger)
        assert found == hashlib.sha256(reference.read_bytes()).hexdigest()
        own = Entry(label="m", source=Source("path", str(reference)))
        assert _content_of_reference(own, facts_of(reference, ledger), ledger) == ""


def test_a_configuration_beside_weights_counts_in_the_key_of_a_verdict(
    tmp_path: Path,
) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"weights")
    config = minute_config(tmp_path)
    told = Entry(label="w.pt", source=Source("path", str(path)), architecture=str(config))
    alone = replace(told, architecture=None)

    def key(entry: Entry) -> str:
        with Ledger(tmp_path / "ledger") as ledger:
            (unit,) = planned([entry], ledger).units
        return unit.key

    assert len({key(alone), key(told), key(replace(told, architecture="tiny-vit"))}) == 3
    before = key(told), key(alone)
    gelu = MINUTE.with_blocks(activation=Activation.GELU)
    minute_config(tmp_path, gelu)
    assert key(told) != before[0]
    minute_config(tmp_path, gelu).rename(tmp_path / "open_clip_config.json")
    assert key(alone) != before[1]


def test_a_configuration_beside_the_reference_is_part_of_it_as_well(tmp_path: Path) -> None:
    reference = tmp_path / "w.pt"
    reference.write_bytes(b"weights")
    entry = Entry(
        label="m", source=Source("path", str(tmp_path / "m.pt")), reference=str(reference)
    )
    with Ledger(tmp_path / "ledger") as ledger:
        before = _content_of_reference(entry, Facts(), ledger)
        minute_config(tmp_path).rename(tmp_path / "config.json")
        assert _content_of_reference(entry, Facts(), ledger) != before
