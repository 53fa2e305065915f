from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.sandbox import wire
from clipcheck.sandbox.wire import ArrayChannel, Channel, Garbled, Memory

DTYPES = ["float16", "bfloat16", "float32", "float64", "int8", "int64", "uint8", "bool"]
ROOM = 1 << 16


@contextmanager
def ends(kind: type[Channel] = Channel) -> Iterator[tuple[Channel, Channel, socket.socket]]:
    """Return both ends of a channel, and the socket of the far one."""
    near, far = socket.socketpair()
    memory = Memory(ROOM)
    with near, far:
        yield kind(near, memory), kind(far, memory), far
    memory.close()


def framed(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def send(raw: socket.socket, data: bytes) -> None:
    """Send in a thread: it is more than the system buffers before it is read."""

    def run() -> None:
        with suppress(OSError):
            raw.sendall(data)

    threading.Thread(target=run, daemon=True).start()


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4)), max_size=4
    )
)
def test_tensors_come_as_they_were_sent(described: list[tuple[str, list[int]]]) -> None:
    sent = [torch.randn(shape).mul(9).to(getattr(torch, dtype)) for dtype, shape in described]
    with ends() as (near, far, _):
        far.send({"word": "\u3000"}, sent)
        message, came = near.receive(5)
    assert message == {"word": "\u3000"}
    for one, other in zip(sent, came, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([each for each in DTYPES if each != "bfloat16"]),
            st.lists(st.integers(0, 5), max_size=4),
        ),
        max_size=4,
    )
)
def test_arrays_arrive_as_they_were_sent(described: list[tuple[str, list[int]]]) -> None:
    sent = [np.ones(shape).cumsum().reshape(shape).astype(dtype).T for dtype, shape in described]
    with ends(ArrayChannel) as (near, far, _):
        far.send({}, sent)
        came: list[Any] = near.receive(5).tensors
        far._memory.buffer[:] = bytes(ROOM)
    for one, other in zip(sent, came, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.array_equal(one, other)


def test_a_tensor_in_another_order_comes_with_its_values() -> None:
    sent = torch.arange(6.0).view(2, 3).t()
    with ends() as (near, far, _):
        far.send({}, [sent])
        assert torch.equal(near.receive(5).tensors[0], sent)


def test_the_sender_cannot_change_what_was_received() -> None:
    with ends() as (near, far, _):
        far.send({}, [torch.ones(3)])
        (came,) = near.receive(5).tensors
        far._memory.buffer[:12] = bytes(12)
        assert torch.equal(came, torch.ones(3))


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.zeros(2, dtype=torch.complex64), id="complex"),
        pytest.param(torch.eye(2).to_sparse(), id="sparse"),
        pytest.param(torch.zeros(ROOM), id="larger than the memory"),
    ],
)
def test_a_tensor_that_does_not_cross_is_refused_before_anything_is_sent(
    tensor: torch.Tensor,
) -> None:
    with ends() as (near, far, _):
        with pytest.raises(ValueError, match="not cross"):
            far.send({}, [tensor])
        with pytest.raises(TimeoutError):
            near.receive(0.01)


BAD_TENSORS: dict[str, Any] = {
    "no list": {"a": 1},
    "no description": [1],
    "a dtype that runs code": [["Tensor", [1], 0]],
    "an attribute of torch": [["os", [1], 0]],
    "a dtype that is not a name": [[["float32"], [1], 0]],
    "a negative size": [["float32", [-1], 0]],
    "a size of true": [["float32", [True], 0]],
    "a size that is not an integer": [["float32", [1.5], 0]],
    "a size of 2 to the 60": [["float32", [1 << 60], 0]],
    "sizes whose product overflows": [["float32", [1 << 32, 1 << 32], 0]],
    "sizes whose product is 0, after one that is huge": [["float32", [1 << 61, 1 << 61, 0], 0]],
    "one element too many": [["float32", [ROOM // 4 + 1], 0]],
    "an offset behind the end": [["float32", [1], ROOM]],
    "an offset before the beginning": [["float32", [1], -64]],
    "an unaligned offset": [["float32", [1], 1]],
    "an empty tensor with a size beyond numpy's limit": [["float64", [0, 1 << 61], 0]],
    "a million dimensions": [["float32", [1] * 1_000_000, 0]],
    "a shape of shapes": [["float32", [[1]], 0]],
}


@pytest.mark.parametrize("kind", [Channel, ArrayChannel])
@pytest.mark.parametrize("tensors", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_wrong_description_of_a_tensor_is_an_invalid_message(
    tensors: Any, kind: type[Channel]
) -> None:
    text = json.dumps({"done": {}, "tensors": tensors}).encode()
    with ends(kind) as (near, _, raw):
        send(raw, framed(text))
        with pytest.raises(Garbled):
            near.receive(5)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x80\x04\x95",
        b"[]",
        b'"a"',
        b"{}",
        b"NaN",
        b'{"tensors": [], "x": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 10_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_message_is_garbled(text: bytes) -> None:
    with ends() as (near, _, raw):
        send(raw, framed(text))
        with pytest.raises(Garbled):
            near.receive(5)


def test_a_message_that_says_it_is_longer_than_any_is_not_waited_for() -> None:
    with ends() as (near, _, raw):
        raw.sendall(struct.pack(">I", 0xFFFFFFFF))
        with pytest.raises(Garbled, match="4,294,967,295"):
            near.receive(5)


@given(st.binary(max_size=300))
def test_whatever_comes_is_a_message_or_garbled_or_not_all_there(data: bytes) -> None:
    with ends() as (near, _, raw):
        raw.sendall(data)
        raw.close()
        with suppress(Garbled, EOFError):
            near.receive(5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
)


@pytest.mark.parametrize("kind", [Channel, ArrayChannel])
@given(tensors=st.lists(JSON, max_size=3), data=st.data())
def test_any_description_of_tensors_is_copied_or_an_invalid_message(
    tensors: list[Any], data: Any, kind: type[Channel]
) -> None:
    plausible = st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(-2, 1 << 20)), JSON)
    text = json.dumps({"tensors": [*tensors, *data.draw(st.lists(plausible, max_size=2))]})
    with ends(kind) as (near, _, raw):
        raw.sendall(framed(text.encode()))
        with suppress(Garbled):
            for tensor in near.receive(5).tensors:
                assert tensor.nbytes <= ROOM


def test_a_message_that_comes_byte_by_byte_does_not_extend_the_timeout() -> None:
    with ends() as (near, _, raw):
        raw.sendall(framed(b"{}" * 10)[:-1])
        with pytest.raises(TimeoutError):
            near.receive(0.05)


def test_the_memory_cannot_be_made_shorter_or_longer() -> None:
    import os

    memory = Memory(ROOM)
    for size in (0, 2 * ROOM):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.descriptor, size)
    memory.close()


def test_memory_that_was_sealed_cannot_be_mapped_to_be_written_to() -> None:
    memory = Memory(ROOM)
    memory.buffer[:3] = b"abc"
    memory.seal()
    with pytest.raises(PermissionError):
        Memory(ROOM, memory.descriptor)
    own = Memory(ROOM, memory.descriptor, private=True)
    own.buffer[:3] = b"xyz"
    assert memory.buffer[:3] == b"abc"
    memory.buffer[:3] = b"def"
    assert own.buffer[:3] == b"xyz"
    memory.close()


def test_a_message_longer_than_any_is_not_sent() -> None:
    with ends() as (near, _, _), pytest.raises(ValueError, match="bytes"):
        near.send({"text": "x" * wire.MOST_TEXT})
