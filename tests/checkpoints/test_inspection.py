from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.inspection import SCALAR_TYPES, Code, format_version, read_code
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.errors import DamagedError
from clipcheck.models.torchscript import float_casts
from clipcheck.system import torchscript_support
from tests.samples import minute_bytes, record_names, repacked


def records_of(path: Path) -> Records:
    return Records(MappedFile(path))


def text_of(records: Records) -> str:
    code = [name for name in records.names("code/") if name.endswith(".py")]
    return "\n".join(records.read(name).decode() for name in code)


def code_with(line: str, folder: Path) -> Code:
    """Return what is read from an archive whose only code is this expression."""
    data = minute_bytes(Format.ARCHIVE)
    names = [name.partition("/")[2] for name in record_names(data)]
    code = [name for name in names if name.startswith("code/") and name.endswith(".py")]
    source = f"class M(Module):\n  def forward(self, x: Tensor) -> Tensor:\n    return {line}\n"
    changes = {code[0]: source.encode(), **dict.fromkeys(code[1:], b"")}
    path = folder / "altered"
    path.write_bytes(repacked(data, changes))
    return read_code(records_of(path))


def test_devices_are_counted_as_often_as_the_code_has_them(tiny_archive: Path) -> None:
    records = records_of(tiny_archive)
    text = text_of(records)
    code = read_code(records)
    assert code.devices["cuda:0"] == text.count('torch.device("cuda:0")')
    assert code.devices["cuda:0"] > 20
    assert code.devices["cpu"] == text.count('torch.device("cpu")')
    assert set(code.devices) == {"cuda:0", "cpu"}


def test_dtypes_are_counted_as_often_as_the_code_has_them(tiny_archive: Path) -> None:
    records = records_of(tiny_archive)
    text = text_of(records)
    # What is cast is a name, or what another module gives; a device may come before the dtype.
    value = r"(?:[\w.]+|\(\w+\)\.\w+\([\w, ]*\))"
    cast = rf'torch\.to\({value}, (?:torch\.device\("[\w:]+"\), )?(\d+)\b'
    found = re.findall(rf"{cast}|\bdtype=(\d+)", text)
    expected = Counter(SCALAR_TYPES[int(one or other)] for one, other in found)
    assert read_code(records).dtypes == expected
    assert set(expected) >= {"float16", "float32"}


def test_as_many_casts_are_read_as_the_interpreter_has(tiny_archive: Path) -> None:
    with torchscript_support.silenced():
        module = torch.jit.load(str(tiny_archive), map_location="cpu")
    # Modules of one class share its code.
    classes = {m._c._type().qualified_name(): m for m in module.modules()}
    casts = Counter(
        SCALAR_TYPES[number]
        for one in classes.values()
        for name in one._c._method_names()
        for _, _, number in float_casts(one._c._get_method(name).graph)
    )
    found = read_code(records_of(tiny_archive)).dtypes
    assert {name: n for name, n in found.items() if name != "int64"} == casts
    assert casts


def test_the_version_is_that_of_the_format(tiny_archive: Path) -> None:
    records = records_of(tiny_archive)
    assert format_version(records) == records.read("version").decode().strip()
    assert format_version(records).isdecimal()


@pytest.mark.parametrize(
    ("line", "devices", "dtypes"),
    [
        ('torch.to(x, torch.device("cuda:1"), 5, False)', {"cuda:1": 1}, {"float16": 1}),
        ("torch.to(x, 15, False, False, None)", {}, {"bfloat16": 1}),
        ("torch.to(x, 99)", {}, {"dtype 99": 1}),
        ("torch.to(x, True)", {}, {}),
        ("torch.to(x, y)", {}, {}),
        ("torch.to(x)", {}, {}),
        ("torch.zeros([5, 6], dtype=6, layout=None)", {}, {"float32": 1}),
        ('torch.arange(5, dtype=None, device=torch.device("cpu"))', {"cpu": 1}, {}),
        ("torch.add(x, 5, 6)", {}, {}),
        ("x.to(x, 5)", {}, {}),
        ("torch.device(x)", {}, {}),
        ("torch.to(torch.to(x, 5), 6)", {}, {"float16": 1, "float32": 1}),
        ("'torch.to(x, 5)'", {}, {}),
    ],
)
def test_each_form_of_call_is_counted_once_or_not_at_all(
    tmp_path: Path, line: str, devices: dict[str, int], dtypes: dict[str, int]
) -> None:
    code = code_with(line, tmp_path)
    assert (code.devices, code.dtypes) == (devices, dtypes)


@pytest.mark.parametrize("line", ["torch.to(x,", "(" * 5000 + ")" * 5000, "x\x00", "-" * 100_000])
def test_invalid_code_is_damage_and_the_record_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(DamagedError, match=r"altered: the record 'code/.*' is not TorchScript cod"):
        code_with(line, tmp_path)


def test_reading_code_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code_with(r"'\d' is 5", tmp_path)


def test_the_numbers_of_the_dtypes_are_those_of_torch() -> None:
    with torchscript_support.silenced():
        for number, name in SCALAR_TYPES.items():
            scripted = torch.jit.CompilationUnit(
                f"def f(x: Tensor) -> Tensor:\n  return x.to({number})\n"
            )
            assert scripted.f(torch.ones(1)).dtype == getattr(torch, name)


@pytest.mark.parametrize("version", [b"", b"three", b"\x1b[2J", b"9" * 5000])
def test_a_version_that_is_not_a_number_is_damage(version: bytes, tmp_path: Path) -> None:
    path = tmp_path / "altered"
    path.write_bytes(repacked(minute_bytes(Format.ARCHIVE), {"version": version}))
    with pytest.raises(DamagedError, match="expected the number of a format") as caught:
        format_version(records_of(path))
    assert len(str(caught.value)) < 400


def test_huge_numbers_are_described_in_words(tmp_path: Path) -> None:
    huge = f"0x{'f' * 5000}"
    found = code_with(f"torch.to(x, {huge})\ntorch.device({huge})\n", tmp_path)
    assert found.dtypes["an invalid dtype"] == 1
    assert not any("f" * 100 in device for device in found.devices)


def test_a_long_device_is_cut(tmp_path: Path) -> None:
    assert "d" * 40 in code_with(f"torch.device('{'d' * 1_000_000}')", tmp_path).devices


def test_code_cannot_choose_its_encoding(tmp_path: Path) -> None:
    # As rot13, or what takes its length squared to decode, Python would read it.
    found = code_with("# coding: utf-7\ntorch.device('+AGE-')\n", tmp_path)
    assert "+AGE-" in found.devices
