"""Make an ONNX program light: with the contents of its weights left in its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clipcheck.checkpoints.onnx_data import Walk, walking

_GRAPH, _INITIALIZER = 7, 5
"""Of a ModelProto, the field of its graph; of a GraphProto, that of its initializers."""

_RAW, _ENTRY, _LOCATION, _EXTERNAL = 9, 13, 14, 1
"""Of a TensorProto: the fields of its contents as bytes, of a key with its value, and of where the
contents are, and what the latter says of contents in a file."""

_SMALL = 1 << 12
"""Contents of fewer bytes than this stay where they are: shapes, axes, constants of activations."""


def without_contents(path: Path) -> bytes:
    """Return an ONNX program whose large initializers name this file for their contents.

    It is a few hundred kilobytes, and takes the contents from the folder of ``path``.

    Args:
        path: of a program that has no data files.

    Raises:
        CheckpointError, DamagedError: as for `clipcheck.checkpoints.onnx_data.data_files`.
    """
    with walking(path) as walk:
        return b"".join(
            _message(_GRAPH, _graph(walk, value, path.name))
            if number == _GRAPH and isinstance(value, range)
            else walk.contents(whole)
            for number, value, whole in walk.spans(0, walk.size)
        )


def _graph(walk: Walk, graph: range, location: str) -> bytes:
    return b"".join(
        _message(_INITIALIZER, _tensor(walk, value, location))
        if number == _INITIALIZER and isinstance(value, range)
        else walk.contents(whole)
        for number, value, whole in walk.spans(graph.start, graph.stop)
    )


def _tensor(walk: Walk, tensor: range, location: str) -> bytes:
    kept: list[bytes] = []
    for number, value, whole in walk.spans(tensor.start, tensor.stop):
        if number == _RAW and isinstance(value, range) and len(value) >= _SMALL:
            entries = {"location": location, "offset": value.start, "length": len(value)}
            kept += [
                _message(_ENTRY, _message(1, key.encode()) + _message(2, str(text).encode()))
                for key, text in entries.items()
            ]
            kept.append(bytes((_LOCATION << 3, _EXTERNAL)))
        elif number != _LOCATION:
            kept.append(walk.contents(whole))
    return b"".join(kept)


def _message(number: int, contents: bytes) -> bytes:
    """Return a field that is a message, a text or bytes."""
    return bytes((*_groups(number << 3 | 2), *_groups(len(contents)))) + contents


def _groups(value: int) -> Iterator[int]:
    """Yield the groups of 7 bits of an integer, the lowest first; all but the last have their top
    bit set."""
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
