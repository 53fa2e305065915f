from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from clipcheck.checkpoints.onnx_data import computing_dtype, data_files, located
from clipcheck.checkpoints.opening import open_subject, size_of
from clipcheck.errors import CheckpointError, DamagedError


def tensor(location: str = "", *, offset: int = 0, name: str = "w") -> TensorProto:
    """Return a tensor of two numbers, in its own file if a location is given."""
    found = helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])
    if location:
        found.ClearField("float_data")
        found.data_location = TensorProto.EXTERNAL
        entries = {"location": location, "offset": str(offset), "length": "8"}
        for key, value in entries.items():
            found.external_data.add(key=key, value=value)
    return found


def graph(*initializers: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.GraphProto:
    nodes = nodes or (helper.make_node("Relu", ["x"], ["y"]),)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    return helper.make_graph(list(nodes), "g", ends[:1], ends[1:], list(initializers))


def written(folder: Path, model: onnx.ModelProto, data: tuple[str, ...] = ()) -> Path:
    """Write a program, and files of 16 bytes."""
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for number, name in enumerate(data):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes([number]) * 16)
    return path


def named(path: Path) -> list[str]:
    return sorted(file.relative_to(path.parent).as_posix() for file in data_files(path))


def with_training(external: TensorProto) -> onnx.ModelProto:
    model = helper.make_model(graph())
    model.training_info.add().algorithm.CopyFrom(graph(external))
    return model


def with_function(external: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["y"], value=external)
    function = helper.make_function("d", "f", [], ["y"], [node], [helper.make_opsetid("", 20)])
    return helper.make_model(graph(), functions=[function])


def with_sparse(external: TensorProto) -> onnx.ModelProto:
    model = helper.make_model(graph())
    model.graph.sparse_initializer.add().values.CopyFrom(external)
    return model


def within_a_branch(external: TensorProto) -> onnx.ModelProto:
    inner = helper.make_node("Constant", [], ["y"], value=external)
    branch = helper.make_node("If", ["c"], ["y"], then_branch=graph(nodes=(inner,)))
    return helper.make_model(graph(nodes=(branch,)))


@pytest.mark.parametrize(
    "place",
    [
        lambda external: helper.make_model(graph(tensor(), external)),
        with_training,
        with_function,
        with_sparse,
        within_a_branch,
    ],
)
def test_data_is_found_at_every_place_of_a_tensor(
    place: Callable[[TensorProto], onnx.ModelProto], tmp_path: Path
) -> None:
    assert named(written(tmp_path, place(tensor("w.data")), ("w.data",))) == ["w.data"]


def test_a_program_in_one_file_names_none(tmp_path: Path) -> None:
    path = written(tmp_path, helper.make_model(graph(tensor())), ("m.onnx.data",))
    assert data_files(path) == ()
    assert open_subject(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@given(
    places=st.lists(st.sampled_from(["a", "b.data", "c/d", "w.onnx.data", ""]), max_size=6),
    in_branch=st.booleans(),
)
def test_the_files_are_those_that_onnx_itself_would_read(
    places: list[str], in_branch: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    tensors = [tensor(place, name=f"w{number}") for number, place in enumerate(places)]
    made = graph(*tensors)
    if in_branch:
        made = graph(nodes=(helper.make_node("If", ["c"], ["y"], then_branch=made),))
    model = helper.make_model(made)
    expected = {
        entry.value
        for each in _get_all_tensors(model)
        if uses_external_data(each)
        for entry in each.external_data
        if entry.key == "location"
    }
    path = written(tmp_path_factory.mktemp("m"), model, tuple(expected))
    assert named(path) == sorted(expected)


def test_one_hash_and_size_cover_all_files(tmp_path: Path) -> None:
    model = helper.make_model(graph(tensor("sub/b"), tensor("a", offset=8)))
    path = written(tmp_path, model, ("sub/b", "a"))
    lines = "".join(
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("a", "m.onnx", "sub/b")
    )
    before = open_subject(path)
    assert before.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert before.size == size_of(path) == path.stat().st_size + 32
    (tmp_path / "sub/b").write_bytes(b"\1" * 16)
    assert open_subject(path).sha256 != before.sha256


@pytest.mark.parametrize("location", ["../w.data", "/etc/passwd", "C:\\w.data", "sub/../../w.data"])
def test_a_name_that_leaves_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "w.data").write_bytes(bytes(16))
    path = written(folder, helper.make_model(graph(tensor(location))))
    with pytest.raises(CheckpointError, match="expected its data in its own folder, found that it"):
        open_subject(path)


def test_a_link_out_of_the_folder_is_refused_and_the_cache_of_a_hub_is_not(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    path = written(blobs, helper.make_model(graph(tensor("w.data"))), ("w.data",))
    (snapshot / "w.data").symlink_to("../blobs/w.data")
    (snapshot / "m.onnx").symlink_to("../blobs/m.onnx")
    assert data_files(snapshot / "m.onnx") == (snapshot / "w.data",)
    (snapshot / "m.onnx").unlink()
    (snapshot / "m.onnx").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"it names 'w.data', a link to .*blobs/w.data"):
        data_files(snapshot / "m.onnx")


def test_missing_and_truncated_files_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, helper.make_model(graph(tensor("w.data", offset=9))), ("w.data",))
    with pytest.raises(DamagedError, match=r"'w\.data' has 16 bytes, and 17 are needed\. Fetch"):
        open_subject(path)
    (tmp_path / "w.data").unlink()
    with pytest.raises(DamagedError, match=r"its data file 'w\.data' is missing\. Fetch it, and"):
        open_subject(path)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-1"), ("length", "x"), ("location", ""), ("location", "a\0b")]
)
def test_invalid_entries_are_damage(key: str, value: str, tmp_path: Path) -> None:
    external = tensor("w.data")
    next(each for each in external.external_data if each.key == key).value = value
    with pytest.raises(DamagedError):
        data_files(written(tmp_path, helper.make_model(graph(external)), ("w.data",)))


def test_truncated_fields_are_damage(tmp_path: Path) -> None:
    whole = helper.make_model(graph(tensor("w.data"))).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: whole.index(b"w.data") + 3])
    with pytest.raises(DamagedError, match=r"it is no ONNX \(a field ends behind its message"):
        data_files(path)


def test_names_of_tensors_stored_inside_are_no_data_files(tmp_path: Path) -> None:
    external = tensor("w.data")
    external.data_location = TensorProto.DEFAULT
    assert data_files(written(tmp_path, helper.make_model(graph(external)))) == ()


def test_a_file_in_a_subfolder_is_located(tmp_path: Path) -> None:
    assert located(tmp_path / "m.onnx", "./sub/w") == tmp_path / "sub" / "w"


@pytest.mark.parametrize(
    ("dtypes", "operator", "told"),
    [
        ([TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT], "MatMul", "float16"),
        ([TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16], "Conv", "float32"),
        ([TensorProto.BFLOAT16], "Gemm", "bfloat16"),
        ([TensorProto.FLOAT16], "Cast", None),
        ([TensorProto.INT8], "MatMul", None),
    ],
)
def test_the_dtype_is_that_of_most_weights_that_are_multiplied(
    dtypes: list[int], operator: str, told: str | None, tmp_path: Path
) -> None:
    nodes = [helper.make_node(operator, ["x", f"w{n}"], [f"y{n}"]) for n in range(len(dtypes))]
    model = helper.make_model(graph(nodes=tuple(nodes)))
    for number, dtype in enumerate(dtypes):
        model.graph.initializer.add(name=f"w{number}", data_type=dtype, dims=[0])
    assert computing_dtype(written(tmp_path, model)) == told
