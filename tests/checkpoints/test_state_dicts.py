from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.state_dicts import Inert, LegacyFile, read_pickle
from clipcheck.checkpoints.unpickle import TensorRecord
from clipcheck.errors import ArchitectureError, DamagedError, UnsafeError
from tests.checkpoints.test_unpickle import tensor_of
from tests.samples import flipped, minute_weights, saved

HERE = Path(__file__)
"""Of a few kilobytes: storages of tests have fewer elements."""


def read(value: object) -> Any:
    return read_pickle(pickle.dumps(value, protocol=2), HERE)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n.".encode()


def test_an_unpickled_object_has_items_and_attributes_but_no_behaviour() -> None:
    found = read(argparse.Namespace(a=1, b=argparse.Namespace(c={"d": 2})))
    assert (type(found), dict(found)) == (Inert, {})
    assert found.attributes["a"] == 1
    assert found.attributes["b"].attributes == {"c": {"d": 2}}
    assert len({read({1}), read({1})}) == 2


def test_a_builtin_mapping_has_no_attributes() -> None:
    value = OrderedDict(a=1)
    value._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    found = read(value)
    assert (dict(found), found.attributes) == ({"a": 1}, {})


def test_the_class_of_these_objects_cannot_be_changed() -> None:
    before = vars(Inert).copy()
    for change in (b"}X\x05\x00\x00\x00itemsNsb", b"K\x01a", b"X\x01\x00\x00\x00aK\x01s"):
        with pytest.raises(DamagedError):
            read_pickle(b"\x80\x02cargparse\nNamespace\n" + change + b".", HERE)
    assert vars(Inert) == before


TOLERATED = {
    "numpy._core.multiarray scalar",
    "numpy.core.multiarray _reconstruct",
    "numpy.random._mt19937 MT19937",
    "pathlib._local PosixPath",
    "omegaconf.dictconfig DictConfig",
    "omegaconf.base ContainerMetadata",
    "pytorch_lightning.utilities.parsing AttributeDict",
    "lightning.pytorch.callbacks.model_checkpoint ModelCheckpoint",
    "torch.optim.adamw AdamW",
    "torch.amp.grad_scaler GradScaler",
    "torch.cuda.amp.grad_scaler _refresh_per_optimizer_state",
    "torch.serialization _get_layout",
    "torch.torch_version TorchVersion",
    "transformers.training_args TrainingArguments",
}
REFUSED = {
    "posix system",
    "__builtin__ getattr",
    "__builtin__ eval",
    "__builtin__ __import__",
    "torch.storage _load_from_bytes",
    "torch.nn.modules.linear Linear",
    "torch.optim.adamw adamw",
    "torch.serialization load",
    "torch.serialization _get_layout.x",
    "torch.optim.adamw_AdamW x",
    "numpy.testing._private.utils runstring",
    "numpy.f2py.os system",
    "numpy.random os.system",
    "omegaconf os.system",
    "omegaconf.omegaconf load",
    "pathlib os.system",
    "datetime sys",
    "argparse FileType",
    "functools partial",
    "clip.model CLIP",
}


@pytest.mark.parametrize("name", sorted(TOLERATED))
def test_objects_of_training_code_are_read(name: str) -> None:
    assert read_pickle(named(*name.split()), HERE) is Inert


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_other_names_are_refused(name: str) -> None:
    told = name.replace(" ", ".").replace("__builtin__.", "")
    with pytest.raises(UnsafeError) as caught:
        read_pickle(named(*name.split()), HERE)
    assert caught.value.problem == (
        f"its pickle asks for {told}, which could run code; nothing was run"
    )


@pytest.mark.parametrize(
    "name",
    [
        "torch._utils _rebuild_sparse_tensor",
        "torch._utils _rebuild_qtensor",
        "torch.distributed.tensor._api DTensor",
        "torch.distributed._shard.sharded_tensor.api ShardedTensor",
    ],
)
def test_tensors_of_other_kinds_are_refused_as_such(name: str) -> None:
    with pytest.raises(ArchitectureError, match="sparse, quantized, sharded or of a special class"):
        read_pickle(named(*name.split()), HERE)


def test_a_tensor_of_a_dtype_without_a_storage_class_is_placed(tmp_path: Path) -> None:
    value = {
        "a": torch.zeros(2, 3, dtype=torch.float8_e4m3fn),
        "b": torch.zeros(2, device="meta"),
        "c": torch.zeros(3, dtype=torch.uint16),
    }
    path = tmp_path / "file"
    path.write_bytes(saved(value, legacy=True))
    found: Any = LegacyFile(path).saved
    assert isinstance(found["a"], TensorRecord)
    assert (found["a"].storage.dtype, found["a"].shape) == ("float8_e4m3fn", (2, 3))
    assert (found["c"].storage.dtype, found["c"].storage.length) == ("uint16", 3)
    assert (found["b"].storage.location, found["b"].shape) == ("meta", (2,))


def test_attributes_of_a_tensor_are_dropped(tmp_path: Path) -> None:
    weights = minute_weights()
    weights["visual.proj"].tensor_parallel = True  # type: ignore[attr-defined]
    path = tmp_path / "file"
    path.write_bytes(saved(weights))
    assert torch.equal(open_checkpoint(path).tensors["visual.proj"], weights["visual.proj"])


# ------------------------------------------------------------------ files from before torch 1.6


def legacy(alter: Callable[[bytearray], object], value: object = None) -> bytes:
    data = bytearray(saved({"a": torch.zeros(3)} if value is None else value, legacy=True))
    alter(data)
    return bytes(data)


def last_length(data: bytearray) -> int:
    """Return the position of the number of elements of the only storage."""
    return len(data) - 3 * 4 - 8


DAMAGE: dict[str, tuple[Callable[[bytearray], object], str]] = {
    "another length": (
        lambda data: struct.pack_into("<q", data, last_length(data), 4),
        "a storage has another length than its tensor says",
    ),
    "a negative length": (
        lambda data: struct.pack_into("<q", data, last_length(data), -1),
        "a storage has another length than its tensor says",
    ),
    "cut off": (lambda data: data.__delitem__(slice(-1, None)), "it was cut off"),
    "cut off earlier": (
        lambda data: data.__delitem__(slice(-20, None)),
        "a storage has another length",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_storages_that_contradict_their_description_are_damage(tmp_path: Path, case: str) -> None:
    alter, problem = DAMAGE[case]
    path = tmp_path / "file"
    path.write_bytes(legacy(alter))
    with pytest.raises(DamagedError, match=problem):
        LegacyFile(path)


def with_keys(alter: Callable[[list[Any]], list[Any]]) -> bytes:
    """Return a file with another list of storages."""
    data = saved({"a": torch.zeros(3)}, legacy=True)
    file = io.BytesIO(data)

    class Loose(pickle.Unpickler):
        def persistent_load(self, _: object) -> object:
            return None

        def find_class(self, *_: str) -> object:
            return lambda *_: None

    for _ in range(4):
        Loose(file).load()
    start = file.tell()
    keys = pickle.load(file)
    return data[:start] + pickle.dumps(alter(keys), protocol=2) + data[file.tell() :] * 2


@pytest.mark.parametrize(
    ("alter", "problem"),
    [
        (lambda _: ["x"], "lists a storage that no tensor uses"),
        (lambda _: [1], "lists a storage that no tensor uses"),
        (lambda keys: keys * 2, "lists a storage that no tensor uses"),
        (lambda _: [], "the storage of a tensor is missing"),
    ],
)
def test_storages_that_are_not_those_of_the_tensors_are_damage(
    tmp_path: Path, alter: Callable[[list[Any]], list[Any]], problem: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(with_keys(alter))
    with pytest.raises(DamagedError, match=problem):
        _read_of_legacy(path)


def _read_of_legacy(path: Path) -> None:
    file: Any = LegacyFile(path)
    file.read(file.saved["a"].storage)


def test_two_storages_of_one_name_are_damage() -> None:
    pickled = b"\x80\x02" + tensor_of(shape=(1,)) + tensor_of(shape=(1,), length=2) + b"\x86."
    with pytest.raises(DamagedError, match="two storages have the same name"):
        read_pickle(pickled, HERE)


def test_a_file_of_a_big_endian_machine_is_refused(tmp_path: Path) -> None:
    data = saved({"a": torch.zeros(3)}, legacy=True)
    at = data.index(b"little_endian") + len(b"little_endian")
    at = data.index(b"\x88", at)
    path = tmp_path / "file"
    path.write_bytes(flipped(data, at, 0x88 ^ 0x89))
    with pytest.raises(DamagedError, match="big-endian"):
        LegacyFile(path)


def test_the_command_of_a_legacy_file_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    class Command:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    path = tmp_path / "file"
    path.write_bytes(with_keys(lambda _: [Command()]))
    with pytest.raises(UnsafeError, match=rf"{os.name}\.system"):
        LegacyFile(path)
