from __future__ import annotations

import builtins
import os
import pickle
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.checkpoints import unpickle
from clipcheck.checkpoints.checkpoint import Format, same_bits
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.checkpoints.saved import map_tensors
from clipcheck.checkpoints.unpickle import (
    ITEM_SIZES,
    STORAGE_DTYPES,
    read_tensors,
)
from clipcheck.errors import ClipcheckError, DamagedError, UnsafeError
from clipcheck.system import torchscript_support
from tests.samples import minute_bytes, repacked


def records_of(path: Path) -> Records:
    return Records(MappedFile(path))


def archive_with(changes: dict[str, bytes], folder: Path) -> Records:
    """Return the smallest archive with other pickles, and with correct checksums."""
    path = folder / "altered"
    path.unlink(missing_ok=True)  # it may be mapped still
    path.write_bytes(repacked(minute_bytes(Format.ARCHIVE), changes))
    return records_of(path)


def interpreted(path: Path) -> torch.jit.ScriptModule:
    """Read the same file with TorchScript, as the oracle."""
    with torchscript_support.silenced():
        module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")
    return module


def scripted(module: torch.nn.Module, path: Path) -> Path:
    with torchscript_support.silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))
    return path


# ------------------------------------------------------------------ as the interpreter reads them


def test_tensors_are_those_of_the_interpreter_bit_for_bit_and_in_its_order(
    tiny_archive: Path,
) -> None:
    records = records_of(tiny_archive)
    ours = map_tensors(records, read_tensors(records))
    oracle = interpreted(tiny_archive).state_dict()
    assert list(ours) == list(oracle)
    for key, tensor in oracle.items():
        assert same_bits(ours[key], tensor), key


class Buffers(torch.nn.Module):
    """Holds a tensor of each dtype, and views of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        for name, dtype in STORAGE_DTYPES.items():
            values = torch.tensor([[0, 1, 1], [1, 0, 1]])
            self.register_buffer(name, values.to(getattr(torch, dtype)))
        base = torch.arange(24.0)
        self.register_buffer("whole", base)
        self.register_buffer("late", base[7:])
        self.register_buffer("turned", base.view(4, 6).t())
        self.register_buffer("stepped", base[1::3])
        self.register_buffer("repeated", base[:1].expand(5))
        self.register_buffer("empty", torch.empty(3, 0))
        self.register_buffer("scalar", torch.tensor(1.5))
        self.inner = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        self.again = self.inner
        self.numbers = [1, 2]
        self.title = "title"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.again(self.inner(x))
        return y + len(self.title) + self.numbers[0]


def test_every_dtype_and_view_is_read_as_the_interpreter_does(tmp_path: Path) -> None:
    path = scripted(Buffers(), tmp_path / "views")
    records = records_of(path)
    ours = map_tensors(records, read_tensors(records))
    oracle = interpreted(path).state_dict()
    assert {tensor.dtype for tensor in oracle.values()} >= {
        getattr(torch, dtype) for dtype in STORAGE_DTYPES.values()
    }
    assert ours.keys() == oracle.keys()
    for key, tensor in oracle.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key
        assert ours[key].stride() == tensor.stride(), key


def test_the_item_sizes_are_those_of_torch() -> None:
    assert set(ITEM_SIZES) == set(STORAGE_DTYPES.values())
    for dtype, size in ITEM_SIZES.items():
        assert getattr(torch, dtype).itemsize == size


def test_the_storage_names_are_those_of_torch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the classes are deprecated, their names in files are not
        for name, dtype in STORAGE_DTYPES.items():
            assert getattr(torch, name).dtype == getattr(torch, dtype)


# ------------------------------------------------------------------ nothing is run


class Calling:
    """Pickles to a call of ``function``."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.name}.system"),
        (builtins.eval, "builtins.eval"),
        (builtins.getattr, "builtins.getattr"),
        (torch.load, "torch.serialization.load"),
        (torch.nn.Linear, "torch.nn.modules.linear.Linear"),
    ],
)
def test_a_pickle_that_asks_for_anything_else_is_refused_by_name(
    tmp_path: Path, function: Any, name: str
) -> None:
    trace = tmp_path / "trace"
    pickled = pickle.dumps((Calling(function, f"touch {trace}"),), protocol=4)
    records = archive_with({"data.pkl": pickled}, tmp_path)
    with pytest.raises(UnsafeError) as caught:
        read_tensors(records)
    assert str(caught.value) == (
        f"{records.file.path}: its pickle asks for {name}, which TorchScript does not write "
        "and which could run code; nothing was run. Do not load this file with anything else. Ask "
        "its author for the weights as safetensors."
    )
    assert not trace.exists()


def test_a_storage_of_another_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeError, match=r"asks for numpy\.FloatStorage,"):
        read_tensors(archive_with({"data.pkl": b"\x80\x02cnumpy\nFloatStorage\n."}, tmp_path))


# ------------------------------------------------------------------ what is no sound archive


def module_with(**attributes: bytes) -> bytes:
    """Pickle a module, in protocol 2, whose attributes are pickled already."""
    items = b"".join(_text(name) + value for name, value in attributes.items())
    return b"\x80\x02c__torch__\nModule\n)\x81}(" + items + b"ub."


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _number(value: object) -> bytes:
    # Without the protocol's two bytes and the full stop.
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor_of(
    *,
    offset: object = 0,
    shape: object = (2,),
    stride: object = (1,),
    storage: bytes = b"ctorch\nFloatStorage\n",
    key: str = "2",
    length: object = 1,
    tag: str = "storage",
) -> bytes:
    persistent = b"(" + _text(tag) + storage + _text(key) + _text("cpu") + _number(length) + b"tQ"
    arguments = persistent + _number(offset) + _number(shape) + _number(stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def test_the_pickles_made_here_are_read_where_they_are_sound(tmp_path: Path) -> None:
    inner = module_with(b=tensor_of(shape=(), stride=()))[2:-1]
    sound = module_with(inner=inner, a=tensor_of(shape=(1,)))
    records = archive_with({"data.pkl": sound}, tmp_path)
    found = map_tensors(records, read_tensors(records))
    assert {key: tensor.shape for key, tensor in found.items()} == {"a": (1,), "inner.b": ()}


MALFORMED = {
    "not a module": (pickle.dumps([1], protocol=2), "holds a list, not a module"),
    "cut off": (module_with(a=tensor_of(shape=(1,)))[:-9], "cannot be read"),
    "not a pickle": (b"nonsense", "cannot be read"),
    "a state that is no dict": (b"\x80\x02c__torch__\nM\n)\x81]b.", "state of an object is a list"),
    "beyond the storage": (module_with(a=tensor_of()), "reaches beyond its storage"),
    "a stride beyond": (module_with(a=tensor_of(length=9, stride=(9,))), "beyond its storage"),
    "an offset beyond": (module_with(a=tensor_of(shape=(1,), offset=1)), "beyond its storage"),
    "strides of another rank": (module_with(a=tensor_of(stride=(1, 1))), "with a bad shape"),
    "a negative size": (module_with(a=tensor_of(shape=(-1,))), "an impossible size"),
    "a negative offset": (module_with(a=tensor_of(offset=-1)), "an impossible size"),
    "a fractional size": (module_with(a=tensor_of(shape=(0.5,))), "an impossible size"),
    "a size of text": (module_with(a=tensor_of(shape=("2",))), "an impossible size"),
    "a size of true": (module_with(a=tensor_of(shape=(True,))), "an impossible size"),
    "too many elements": (
        module_with(a=tensor_of(shape=(0, 2**30, 2**30), stride=(1, 1, 1))),
        "an impossible size",
    ),
    "a length of true": (module_with(a=tensor_of(length=True)), "no known dtype or no size"),
    "a long storage name": (
        module_with(a=tensor_of(key="9" * 101)),
        "a storage has a very long name",
    ),
    "a size beyond 64 bits": (
        module_with(a=tensor_of(shape=(0, 2**70), stride=(1, 1))),
        "an impossible size",
    ),
    "an unknown dtype": (module_with(a=tensor_of(storage=_text("complex64"))), "no known dtype"),
    "a dtype that is a list": (module_with(a=tensor_of(storage=b"]")), "cannot be read"),
    "a negative length": (module_with(a=tensor_of(length=-1)), "no known dtype or no size"),
    "a length of text": (module_with(a=tensor_of(length="1")), "no known dtype or no size"),
    "another persistent tag": (module_with(a=tensor_of(tag="module")), "is not that of a storage"),
    "a call of a storage class": (b"\x80\x02ctorch\nFloatStorage\n)R.", "cannot be read"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_pickle_is_a_damaged_archive(tmp_path: Path, case: str) -> None:
    pickled, problem = MALFORMED[case]
    with pytest.raises(DamagedError, match=f"not a valid TorchScript archive: .*{problem}"):
        read_tensors(archive_with({"data.pkl": pickled}, tmp_path))


def test_modules_that_contain_each_other_are_refused(tmp_path: Path) -> None:
    # Memo 0 is the module itself, which is its own child, twice.
    endless = (
        b"\x80\x02c__torch__\nM\n)\x81q\x00}(" + _text("a") + b"h\x00" + _text("b") + b"h\x00ub."
    )
    with pytest.raises(DamagedError, match="without a name, or with a very long one"):
        read_tensors(archive_with({"data.pkl": endless}, tmp_path))


def test_too_many_modules_are_refused(tmp_path: Path) -> None:
    leaf = b"c__torch__\nM\n)\x81q\x00}b"
    several = (b"(" + b"".join(_text(f"a{n}") + b"h\x00" for n in range(101)) + b"u").join
    wide = b"\x80\x02" + leaf + b"0c__torch__\nM\n)\x81}" + several([b"", b"b"]) + b"q\x00"
    wider = wide + b"0c__torch__\nM\n)\x81}" + several([b"", b"b."])
    with pytest.raises(DamagedError, match=f"more than {unpickle._MOST_MODULES} modules"):
        read_tensors(archive_with({"data.pkl": wider}, tmp_path))


def test_a_tensor_without_its_record_is_damage(tmp_path: Path) -> None:
    records = archive_with({"data.pkl": module_with(a=tensor_of(shape=(1,), key="x"))}, tmp_path)
    with pytest.raises(DamagedError, match="the record 'data/x' is missing"):
        map_tensors(records, read_tensors(records))


positions = st.integers(0, 1 << 30)
edits = st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=4)


@given(edits=edits)
def test_no_altered_pickle_raises_anything_but_our_errors(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    pickled = bytearray(archive_with({}, folder).read("data.pkl"))
    for position, value in edits:
        pickled[position % len(pickled)] = value
    records = archive_with({"data.pkl": bytes(pickled)}, folder)
    with suppress(ClipcheckError):
        map_tensors(records, read_tensors(records))


def test_an_object_that_was_never_initialised_has_no_attributes(tmp_path: Path) -> None:
    # NEWOBJ makes it, and no BUILD follows.
    assert (
        read_tensors(archive_with({"data.pkl": b"\x80\x02c__torch__\nM\n)\x81."}, tmp_path)) == {}
    )


def test_a_records_state_cannot_be_set(tmp_path: Path) -> None:
    state = b"}" + _text("shape") + b"(" + _number(1 << 20) + b"ts"
    altered = module_with(a=tensor_of(shape=(1,)) + state + b"b")
    with pytest.raises(DamagedError, match="sets the state of an object that has none"):
        read_tensors(archive_with({"data.pkl": altered}, tmp_path))


def test_a_helpers_defaults_cannot_be_set(tmp_path: Path) -> None:
    helper = unpickle._HELPERS["torch._utils", "_rebuild_tensor_v2"]
    before = vars(helper).copy(), unpickle.tensor_record.__defaults__
    state = b"N}" + _text("__defaults__") + b")s\x86b."
    altered = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state
    with pytest.raises(DamagedError, match="sets the state of an object that has none"):
        read_tensors(archive_with({"data.pkl": altered}, tmp_path))
    assert (vars(helper), unpickle.tensor_record.__defaults__) == before


def test_too_many_attributes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = module_with(a=tensor_of(shape=(1,)), b=tensor_of(shape=(1,)))
    monkeypatch.setattr(unpickle, "_MOST_ATTRIBUTES", 1)
    with pytest.raises(DamagedError, match="more than 1 attributes"):
        read_tensors(archive_with({"data.pkl": sound}, tmp_path))
