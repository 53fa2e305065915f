from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.checkpoints import pickles
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.pickles import survey
from tests.samples import minute_bytes, record_names, saved

ROOM = 1 << 20


def test_all_names_in_a_pickle_are_listed() -> None:
    value = [OrderedDict(a=1), Ellipsis, range]
    assert survey(pickle.dumps(value, protocol=2), room=ROOM).names >= {
        "collections.OrderedDict",
        "__builtin__.xrange",
    }
    assert survey(b"(ios\nsystem\n.", room=ROOM).names == {"os.system"}
    assert survey(pickle.dumps([1, "a"], protocol=2), room=ROOM) == (frozenset(), "")


def test_consecutive_pickles_are_read_and_bytes_after_them_are_not() -> None:
    data = pickle.dumps(1, protocol=2) + pickle.dumps(OrderedDict(), protocol=2) + b"nonsense"
    assert survey(data, room=ROOM, pickles=2).names == {"collections.OrderedDict"}
    with pytest.raises(ValueError, match="opcode b'n' unknown"):
        survey(data, room=ROOM, pickles=3)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.frozensets(st.integers())
    ),
)


@given(value=plain, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_pickles_of_python_are_within_the_limits(value: object, protocol: int) -> None:
    survey(pickle.dumps(value, protocol=protocol), room=ROOM)


@given(data=st.binary(max_size=200))
def test_an_invalid_pickle_is_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        survey(b"\x80\x02" + data, room=ROOM)


def test_training_states_are_within_the_limits() -> None:
    state = {"state_dict": {f"layer.{n}": [n, (n, n + 1)] for n in range(2000)}, "epoch": 3}
    data = saved(state)
    assert survey(_pickle(data), room=ROOM) == (frozenset(), "")


def _pickle(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("/data.pkl"))
        return archive.read(name)


def test_whole_checkpoints_are_far_from_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MOST_OPCODES", pickles._MOST_OPCODES // 100)
    monkeypatch.setattr(pickles, "_MOST_WORK", pickles._MOST_WORK // 100)
    monkeypatch.setattr(pickles, "_MOST_DEPTH", 20)
    for form in (Format.ARCHIVE, Format.STATE_DICT):
        data = minute_bytes(form)
        assert "data.pkl" in {name.partition("/")[2] for name in record_names(data)}
        found = survey(_pickle(data), room=len(data))
        assert "collections.OrderedDict" in found.names
        assert not found.odd


def tuples(levels: int) -> bytes:
    return b"\x80\x02)" + b"\x85" * levels + b"."


def test_depth_is_counted_in_objects() -> None:
    survey(tuples(pickles._MOST_DEPTH - 1), room=ROOM)
    with pytest.raises(ValueError, match="more than 200 levels of nested objects"):
        survey(tuples(pickles._MOST_DEPTH), room=ROOM)


def test_a_longer_list_is_not_deeper() -> None:
    survey(b"\x80\x02]" + b"K\x01a" * 5000 + b".", room=ROOM)


def test_memo_indices_are_bounded_by_the_number_of_objects() -> None:
    survey(b"\x80\x02]q\x01.", room=ROOM)
    with pytest.raises(ValueError, match="gives an object the number 3"):
        survey(b"\x80\x02]q\x03.", room=ROOM)
    with pytest.raises(ValueError, match="gives an object the number 9"):
        survey(b"]p9\n.", room=ROOM)


@pytest.mark.parametrize("data", [b"(q\x00.", b"h\x05.", b"R.", b"u.", b"2.", b"0.", b"", b"]"])
def test_opcodes_that_pop_an_empty_stack_are_refused(data: bytes) -> None:
    with pytest.raises(
        ValueError, match=r"not exist|uses a mark|pickle exhausted|without a number"
    ):
        survey(data, room=ROOM)


def test_no_storage_has_more_elements_than_its_file_has_bytes() -> None:
    pickled = b"\x80\x02(X\x01\x00\x00\x00aM\x00\x10tQ."
    survey(pickled, room=4096)
    with pytest.raises(ValueError, match="a storage with more elements than the file has bytes"):
        survey(pickled, room=4095)


@pytest.mark.parametrize(
    ("pickled", "odd"),
    [
        (b"K\x01)R.", "calls an object that is not a function"),
        (b"K\x01)\x81.", "calls an object that is not a function"),
        (b"ca\nb\n)R)R.", "calls an object that is not a function"),
        (b"ca\nb\nca\nb\n)RR.", "without a list of arguments"),
        (b"ca\nb\nca\nb\n)R\x85R.", "calls a.b with the result of another call"),
        (b"ca\nb\n)Rca\nb\n)Rb.", "sets the state of an object to the result of a call"),
        (b"ca\nb\n)RQ.", "a storage whose name is not a string"),
    ],
)
def test_calls_that_no_pickler_writes_are_reported(pickled: bytes, odd: str) -> None:
    found = survey(pickled, room=ROOM)
    assert odd in found.odd
    assert found.names <= {"a.b"}
