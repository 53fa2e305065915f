from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from clipcheck.checkpoints.artefacts import (
    computing_dtype,
    is_compiled,
    kind_of,
    require_inert,
    require_plain,
)
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.records import ZIP_MAGIC
from clipcheck.errors import CheckpointError, DamagedError, UnknownFormatError, UnsafeError
from tests.samples import FILE_FORMATS, minute_bytes

MODEL = "models/model.json"


@pytest.fixture(scope="module")
def program() -> bytes:
    """Export one linear layer, for any number of rows."""
    rows = torch.export.Dim("rows", min=1)
    example = (torch.zeros(2, 3),)
    found = torch.export.export(
        torch.nn.Linear(3, 3), example, dynamic_shapes=({0: rows},), strict=False
    )
    file = io.BytesIO()
    torch.export.save(found, file)
    return file.getvalue()


def with_records(data: bytes, records: Mapping[str, bytes]) -> bytes:
    """Return the zip file with these records, in place of or beside its own."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        folder = source.namelist()[0].partition("/")[0]
        kept = {
            info.filename.partition("/")[2]: source.read(info) for info in source.infolist()
        } | dict(records)
        for name, contents in kept.items():
            target.writestr(f"{folder}/{name}", contents)
    return out.getvalue()


def read(data: bytes, name: str) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        full = next(each for each in archive.namelist() if each.endswith(f"/{name}"))
        return json.loads(archive.read(full))


def with_json(data: bytes, name: str, alter: Callable[[Any], None]) -> bytes:
    value = read(data, name)
    alter(value)
    return with_records(data, {name: json.dumps(value).encode()})


def zip_of(pickled: bytes, byteorder: bytes = b"little", method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a file as `torch.save` writes it, with this pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as target:
        for name, contents in {
            "data.pkl": pickled,
            "byteorder": byteorder,
            "version": b"3",
        }.items():
            target.writestr(f"inputs/{name}", contents)
    return out.getvalue()


class Evil:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def first_node(model: Any) -> Any:
    return model["graph_module"]["graph"]["nodes"][0]


def set_expression(expression: str) -> Callable[[Any], None]:
    def alter(model: Any) -> None:
        waiting = [model]
        while waiting:
            each = waiting.pop()
            if isinstance(each, dict):
                if "expr_str" in each:
                    each["expr_str"] = expression
                waiting += each.values()
            elif isinstance(each, list):
                waiting += each

    return alter


def set_spec(context: str) -> Callable[[Any], None]:
    spec = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])

    def alter(model: Any) -> None:
        model["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec

    return alter


def pickled_weight(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


EVIL = {
    "native code": (
        lambda data: with_records(data, {"data/aotinductor/model/x.so": b""}),
        "it has native code in it",
    ),
    "pickled inputs": (
        lambda data: with_records(
            data, {"data/sample_inputs/model.pt": pickle.dumps(Evil("made"), protocol=2)}
        ),
        "data/sample_inputs/model.pt is a pickle of more than tensors",
    ),
    "a pickled weight": (
        lambda data: with_json(data, "data/weights/model_weights_config.json", pickled_weight),
        "data/weights/model_weights_config.json names pickles",
    ),
    "weights in an old format": (
        lambda data: with_records(data, {"data/weights/model.pt": b""}),
        "data/weights/model.pt is a pickle",
    ),
    "an object": (
        lambda data: with_records(data, {"data/constants/opaque_obj_0": b""}),
        "data/constants/opaque_obj_0 is a pickle",
    ),
    "a guard": (
        lambda data: with_json(
            data, MODEL, lambda model: model.update(guards_code=["__import__('os').getcwd()"])
        ),
        "is no expression of sizes",
    ),
    "an expression": (
        lambda data: with_json(data, MODEL, set_expression("__import__('os').getcwd()")),
        "is no expression of sizes",
    ),
    "an expression without quotes": (
        lambda data: with_json(data, MODEL, set_expression("eval(chr(49))")),
        "'eval.chr.49..' is no expression of sizes",
    ),
    "a function": (
        lambda data: with_json(
            data, MODEL, lambda model: first_node(model).update(target="torch.os.getcwd")
        ),
        "it calls 'torch.os.getcwd', which is no operator",
    ),
    "an enumeration": (
        lambda data: with_json(
            data, MODEL, set_spec(json.dumps([{"__enum__": True, "fqn": "this:x", "name": "y"}]))
        ),
        "imports a module",
    ),
    "a default": (
        lambda data: with_json(
            data, MODEL, set_spec(json.dumps({"default_factory_module": "this"}))
        ),
        "imports a module",
    ),
}
"""Files that have torch run code when it reads them, and what is said of each."""


def test_a_sound_program_runs_no_code(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(program)
    assert kind_of(path) is Format.PT2
    assert not is_compiled(path)
    require_inert(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_the_dtype_of_a_program_is_recognised(dtype: str, tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 3).to(getattr(torch, dtype))
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(module, (module.weight.data,), strict=False), path)
    assert computing_dtype(path) == dtype


def test_a_program_that_multiplies_nothing_has_no_known_dtype(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),), strict=False), path)
    assert computing_dtype(path) is None


def test_outputs_of_a_custom_class_are_reported(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(program)
    require_plain(path)
    spec = json.dumps([1, {"type": "theirs.Output", "context": "null", "children_spec": []}])

    def alter(model: Any) -> None:
        model["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec

    path.write_bytes(with_json(program, MODEL, alter))
    with pytest.raises(CheckpointError, match=r"of a class of its own, 'theirs\.Output', which is"):
        require_plain(path)


def test_a_repacked_program_still_runs_no_code(program: bytes, tmp_path: Path) -> None:
    """Else what the tests of evil files alter would not be what is told of them."""
    path = tmp_path / "program.pt2"
    path.write_bytes(with_json(program, MODEL, lambda _: None))
    require_inert(path)


@pytest.mark.parametrize("name", EVIL)
def test_a_program_that_would_run_code_is_refused(
    program: bytes, name: str, tmp_path: Path
) -> None:
    alter, reason = EVIL[name]
    path = tmp_path / "program.pt2"
    path.write_bytes(alter(program))
    with pytest.raises(UnsafeError, match=rf"could run code \(.*{reason}.*nothing was run"):
        require_inert(path)
    assert not Path("made").exists()


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].size()[0] <= 8",
        "Mod(L['x'].size()[0], 2) == 0",
        "Max(1, s0) + 3 * s1 != 7 and L['x'].stride()[1] == 1",
    ],
)
def test_guards_on_sizes_are_no_code(program: bytes, guard: str, tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(with_json(program, MODEL, lambda model: model.update(guards_code=[guard])))
    require_inert(path)


@pytest.mark.parametrize(
    "code",
    [
        "open('x')",
        "(lambda: 1)()",
        "[x0 for x0 in range(3)]",
        "L.__class__",
        "L['x y']",
        "s0; s1",
        "getattr(L, 'size')",
        "f'{s0}'",
        "(s0 := 1)",
        "",
    ],
)
def test_other_guards_are_code(program: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(with_json(program, MODEL, lambda model: model.update(guards_code=[code])))
    with pytest.raises(UnsafeError, match="is no expression of sizes"):
        require_inert(path)


def test_an_archive_without_a_program_is_refused(program: bytes, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("program/archive_format", "pt2")
    path = tmp_path / "program.pt2"
    path.write_bytes(out.getvalue())
    with pytest.raises(DamagedError, match="expected an exported program, found none"):
        require_inert(path)


def test_a_program_that_is_not_json_is_damaged(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(with_records(program, {MODEL: b"{"}))
    with pytest.raises(DamagedError, match=r"the record 'models/model\.json' is not JSON"):
        require_inert(path)


def test_an_altered_program_is_damaged(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    altered = bytearray(program)
    altered[program.index(b"torch.ops.aten") + 3] ^= 1
    path.write_bytes(altered)
    with pytest.raises(DamagedError):
        require_inert(path)


def test_native_code_is_recognised(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "package.pt2"
    path.write_bytes(with_records(program, {"data/aotinductor/model/x.so": b""}))
    assert kind_of(path) is Format.PT2
    assert is_compiled(path)


def onnx_bytes() -> bytes:
    shape = ("rows", 3)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:])
    model: onnx.ModelProto = helper.make_model(graph)
    return model.SerializeToString()


def test_onnx_is_recognised_by_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(onnx_bytes())
    assert kind_of(path) is Format.ONNX


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_cut_off_onnx_program_is_reported_as_cut_off(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(onnx_bytes()[:-cut])
    with pytest.raises(DamagedError, match="begins like an ONNX program, but ends early"):
        kind_of(path)


@pytest.mark.parametrize("alter", [lambda whole: whole[:2], lambda whole: whole[2:-2]])
def test_a_file_that_does_not_begin_as_onnx_is_no_program(
    alter: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "program"
    path.write_bytes(alter(onnx_bytes()))
    assert kind_of(path) is None


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_weights_are_no_program(form: Format, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(minute_bytes(form))
    assert kind_of(path) is None


def test_a_zip_file_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(UnknownFormatError):
        kind_of(path)


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        kind_of(tmp_path)


def test_a_zip_file_that_is_cut_off_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(ZIP_MAGIC)
    with pytest.raises(DamagedError):
        kind_of(path)


def begins_as_no_program(contents: bytes) -> bool:
    """Hypothesis reads the first bytes of programs from the code, and draws them."""
    return not contents.startswith((ZIP_MAGIC, b"<net ", b"<?xml")) and contents[4:6] != b"ET"


@given(st.binary(max_size=100).filter(begins_as_no_program))
def test_any_other_bytes_are_no_program(contents: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(contents)
        assert kind_of(path) is None


# ------------------------------------------------------------------ what the search has found


DEEP = "[" * 100_000
GREEDY = b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x70\x85R."
ODD = {
    "a configuration that is a number": (
        {"data/weights/model_weights_config.json": b'{"config": 0.5}'},
        None,
    ),
    "guards that are no list": ({MODEL: b'{"guards_code": 7}'}, "its guards are no list"),
    "a text that nests": ({MODEL: json.dumps({"a": DEEP}).encode()}, "nests too deeply"),
    "a long expression": (
        {MODEL: json.dumps({"guards_code": ["1+" * 10_000 + "1"]}).encode()},
        "is no expression of sizes",
    ),
    "a name that is no text": (
        {"data/sample_inputs/model.pt": zip_of(b"\x80\x02c\xeb\n\xeb\n.")},
        "is a pickle of more than tensors",
    ),
    "a pickle that takes what is not there": (
        {"data/sample_inputs/model.pt": zip_of(b"\x80\x02R.")},
        "is a pickle of more than tensors",
    ),
    "another byte order": (
        {"data/sample_inputs/model.pt": zip_of(b"\x80\x02}.", byteorder=b"littTe")},
        "is a pickle of more than tensors",
    ),
    "gigabytes by a call that torch allows": (
        {"data/sample_inputs/model.pt": zip_of(GREEDY)},
        "is a pickle of more than tensors",
    ),
    "compressed inputs": (
        {"data/sample_inputs/model.pt": zip_of(b"\x80\x02}.", method=zipfile.ZIP_DEFLATED)},
        "is a pickle of more than tensors",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_records_are_refused_or_inert(program: bytes, case: str, tmp_path: Path) -> None:
    records, reason = ODD[case]
    path = tmp_path / "program.pt2"
    path.write_bytes(with_records(program, records))
    if reason is None:
        require_inert(path)
    else:
        with pytest.raises(UnsafeError, match=reason) as caught:
            require_inert(path)
        assert len(str(caught.value)) < 500


def test_json_of_many_megabytes_is_not_parsed(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(with_records(program, {MODEL: b" " * (65 << 20)}))
    with pytest.raises(DamagedError, match="it has more than 67,108,864 bytes"):
        require_inert(path)
