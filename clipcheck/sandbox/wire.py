"""Messages between clipcheck and a sandbox: JSON on a socket, tensors in shared memory.

A message is its length in four bytes, then JSON. Tensors are one after another in shared memory of
a fixed size; the message has the dtype, shape and offset of each. Only one side writes at a time:
the other waits.

Neither side trusts the other: sizes and shapes are checked before anything is read, and tensors are
copied, so that the other side cannot change them later.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    import numpy as np
    import torch

ROOM = 1 << 30
"""Bytes for the tensors of one message. Pages are allocated when written."""

MOST_TEXT = 1 << 20
"""Size limit of a message in bytes. The longest has the names of all weights of a model."""

_MOST_DIMENSIONS = 8
_ALIGNMENT = 64
_SIZES = {
    **dict.fromkeys(("int8", "uint8", "bool"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16"), 2),
    **dict.fromkeys(("float32", "int32"), 4),
    **dict.fromkeys(("float64", "int64"), 8),
}
"""By dtype of a tensor that crosses, the bytes of a number."""

# Of fcntl (linux/fcntl.h).
_ADD_SEALS, _NEITHER_SHRINK_NOR_GROW, _NO_MORE_SEALS = 1033, 0b110, 0b1
_FUTURE_WRITE = 0x10

Message = Mapping[str, Any]


class Garbled(Exception):  # noqa: N818 - said by who waits for the message, as an error of ours
    """A received message is malformed."""


class Received(NamedTuple):
    """A message with its tensors."""

    message: Message
    tensors: list[torch.Tensor]


class Memory:
    """Memory that processes can share.

    Args:
        size: in bytes.
        descriptor: of existing memory.
        private: whether this process's writes are private.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, size: int, descriptor: int | None = None, *, private: bool = False) -> None:
        self.descriptor = _anonymous(size) if descriptor is None else descriptor
        access = mmap.ACCESS_COPY if private else mmap.ACCESS_WRITE
        self.buffer = mmap.mmap(self.descriptor, size, access=access)

    def __len__(self) -> int:
        return len(self.buffer)

    def seal(self) -> None:
        """Forbid writes by processes that map it from now on. Does nothing on other systems than
        Linux."""
        if sys.platform == "linux":
            import fcntl

            fcntl.fcntl(self.descriptor, _ADD_SEALS, _FUTURE_WRITE)

    def close(self) -> None:
        """Close the descriptor. The memory is freed with the last tensor in it."""
        os.close(self.descriptor)


def _anonymous(size: int) -> int:
    """Return a descriptor of anonymous memory. On Linux it cannot shrink: reading past the end of
    shrunk memory would end this process."""
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            return os.dup(file.fileno())
    import fcntl

    descriptor = os.memfd_create("clipcheck", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, _ADD_SEALS, _NEITHER_SHRINK_NOR_GROW)
    return descriptor


class Channel:
    """One end of a connection, whose tensors are torch's."""

    def __init__(self, connection: socket.socket, memory: Memory) -> None:
        self._connection = connection
        self._memory = memory

    def send(
        self, message: Message, tensors: Sequence[torch.Tensor] = (), seconds: float | None = None
    ) -> None:
        """Send a message.

        Args:
            message: values that JSON has.
            tensors: strided, of any device.
            seconds: time limit for the other end to read it; None for no limit.

        Raises:
            ValueError: a tensor has a kind that cannot be sent, or they are too large.
            OSError: the other end is closed, or does not read (TimeoutError).
        """
        placed = self._put(tensors)
        text = json.dumps({**message, "tensors": placed}).encode()
        if len(text) > MOST_TEXT:
            raise ValueError(f"a message has {len(text):,} bytes; at most {MOST_TEXT:,} cross")
        self._connection.settimeout(seconds)
        self._connection.sendall(struct.pack(">I", len(text)) + text)

    def receive(self, seconds: float | None = None) -> Received:
        """Wait for a message.

        Args:
            seconds: time limit for the whole message; None for no limit.

        Raises:
            EOFError: the other end is closed.
            TimeoutError: it took longer.
            Garbled: the data is no valid message.
        """
        until = None if seconds is None else time.monotonic() + seconds
        (length,) = struct.unpack(">I", self._read(4, until))
        if length > MOST_TEXT:
            raise Garbled(f"a message of {length:,} bytes")
        return self._understood(self._read(length, until))

    def _read(self, count: int, until: float | None) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            if until is not None and until <= time.monotonic():
                raise TimeoutError
            self._connection.settimeout(None if until is None else until - time.monotonic())
            try:
                part = self._connection.recv(count - len(parts))
            except ConnectionError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _understood(self, text: bytes) -> Received:
        try:
            message = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise Garbled("something else than JSON") from error
        if not isinstance(message, dict):
            raise Garbled("JSON that is no object")
        described = message.pop("tensors", None)
        if not isinstance(described, list):
            raise Garbled("a message without a list of tensors")
        return Received(message, [self._get(each) for each in described])

    def _put(self, tensors: Sequence[Any]) -> list[tuple[str, list[int], int]]:
        placed = []
        offset = 0
        for tensor in tensors:
            kind = str(tensor.dtype).removeprefix("torch.")
            layout = getattr(tensor, "layout", None)
            if kind not in _SIZES or str(layout or "torch.strided") != "torch.strided":
                raise ValueError(f"a {layout} tensor of {kind} does not cross")
            if offset + tensor.nbytes > len(self._memory):
                raise ValueError(f"tensors of more than {len(self._memory):,} bytes do not cross")
            self._write(tensor, offset)
            placed.append((kind, list(tensor.shape), offset))
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return placed

    def _write(self, tensor: torch.Tensor, offset: int) -> None:
        place_in(self._memory, offset, tensor.dtype, tensor.shape).copy_(tensor)

    def _copy(self, kind: str, shape: Sequence[int], offset: int) -> torch.Tensor:
        import torch

        return place_in(self._memory, offset, getattr(torch, kind), shape).clone()

    def _get(self, described: object) -> torch.Tensor:
        """Copy the described tensor from the shared memory."""
        kind, shape, offset = _parts(described)
        count = 1
        for size in shape:
            count *= size
            # Stop before the product becomes huge; numpy refuses huge sizes also of nothing.
            if max(count, size) > len(self._memory):
                raise Garbled("a tensor that is larger than the memory that it lies in")
        if offset % _ALIGNMENT or offset + count * _SIZES[kind] > len(self._memory):
            raise Garbled("a tensor outside of the memory that was made for it")
        return self._copy(kind, shape, offset)


class ArrayChannel(Channel):
    """One end of a connection, whose tensors are numpy's arrays: it does not import torch."""

    def _write(self, tensor: Any, offset: int) -> None:
        self._at(tensor.dtype, tensor.shape, offset)[...] = tensor

    def _copy(self, kind: str, shape: Sequence[int], offset: int) -> Any:
        if kind == "bfloat16":
            raise Garbled("a tensor of bfloat16, which numpy does not have")
        import numpy as np

        return self._at(np.dtype(kind), shape, offset).copy()

    def _at(self, dtype: np.dtype[Any], shape: Sequence[int], offset: int) -> Any:
        import numpy as np

        count = math.prod(shape)
        if count == 0:
            return np.empty(tuple(shape), dtype)
        return np.frombuffer(self._memory.buffer, dtype, count, offset).reshape(tuple(shape))


def place_in(memory: Memory, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Return a view of the tensor at an aligned offset in memory."""
    import torch

    count = math.prod(shape)
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    flat = torch.frombuffer(memory.buffer, dtype=dtype, count=count, offset=offset)
    return flat.view(tuple(shape))


def _parts(described: object) -> tuple[str, list[int], int]:
    if not isinstance(described, list) or len(described) != 3:
        raise Garbled("a tensor that is not described by three things")
    kind, shape, offset = described
    if not isinstance(kind, str) or kind not in _SIZES:
        raise Garbled("a tensor of a dtype that does not cross")
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise Garbled("a tensor whose shape is no list of counts")
    if not all(_is_count(count) for count in [*shape, offset]):
        raise Garbled("a tensor whose shape or place is no count")
    return kind, shape, offset


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
