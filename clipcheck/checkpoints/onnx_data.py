"""Read an ONNX program without onnx, which need not be installed: its data files, and its dtype.

An ONNX program may name files for the contents of its tensors ("external data" in onnx.proto3), as
torch's exporter does by default. They are part of the program: who reads, hashes or copies it has
to take them along.
"""

from __future__ import annotations

import mmap
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from clipcheck.errors import CheckpointError, DamagedError

if TYPE_CHECKING:
    from clipcheck.gates.weights import Stored

_TENSOR = "tensor"

_PARTS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
}
"""By kind of message, the fields that may have tensors at any depth (onnx.proto3)."""

_ENTRY, _LOCATION, _EXTERNAL = 13, 14, 1
"""Of a TensorProto: the field of a key with its value, that of where the contents are, and what the
latter says of contents that are in another file."""

_DIMS, _DATA_TYPE, _FLOATS, _INTS, _NAME, _RAW = 1, 2, 4, 5, 8, 9
"""Of a TensorProto: the fields of its sizes, of the number of its dtype, of its contents as numbers
(of half precision as integers), of its name, and of its contents as bytes."""

_MULTIPLYING = (b"MatMul", b"Gemm", b"Conv", b"FusedMatMul")
"""Operators with nearly all of a CLIP model's arithmetic."""

_DTYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
"""Floating-point dtypes of programs by number of a TensorProto's data_type."""

_STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""How numpy reads the contents of weights, by dtype."""

_MOST_FIELDS = 10_000_000
"""Most messages to read. The largest released model's program has 100,000."""

_WRITE_ANEW = "Copy or download the program again, or export it anew."


@dataclass(frozen=True)
class Piece:
    """Place of a tensor's contents.

    Attributes:
        location: path of the file, relative to the program's folder.
        offset: of the first byte.
        length: in bytes; None for the rest of the file.
    """

    location: str
    offset: int = 0
    length: int | None = None

    @property
    def end(self) -> int:
        """Least size of the file in bytes."""
        return self.offset + (self.length or 0)


def data_files(path: Path) -> tuple[Path, ...]:
    """Return the data files of an ONNX program, each once, in the program's order.

    Args:
        path: a file of the format ``onnx``.

    Raises:
        CheckpointError: a name leads out of the program's folder.
        DamagedError: a file is missing or too short, or the program is damaged.
    """
    needed: dict[str, int] = {}
    for piece in _pieces(path):
        needed[piece.location] = max(needed.get(piece.location, 0), piece.end)
    found: dict[Path, None] = {}
    for location, size in needed.items():
        file = located(path, location)
        _require_whole(file, location, size, path)
        found[file] = None
    return tuple(found)


def computing_dtype(path: Path) -> str | None:
    """Return the dtype of most weights in an ONNX program's products, or None.

    Weights that it casts first, as those of a file that is stored in half precision, tell nothing.

    Raises:
        CheckpointError, DamagedError: as for `data_files`.
    """
    with walking(path) as walk:
        dtypes, inputs = walk.graph()
    found = Counter(dtypes[name] for name in inputs if name in dtypes)
    known = [_DTYPES[number] for number, _ in found.most_common() if number in _DTYPES]
    return known[0] if known else None


def stored_dtypes(path: Path) -> set[str]:
    """Return the floating-point dtypes of the tensors in an ONNX program.

    Raises:
        CheckpointError, DamagedError: as for `data_files`.
    """
    with walking(path) as walk:
        dtypes, _ = walk.graph()
    return {_DTYPES[number] for number in dtypes.values() if number in _DTYPES}


def weights(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the name and the values of each weight in float32 or half precision, one at a time.

    Raises:
        CheckpointError, DamagedError: as for `data_files`.
    """
    with walking(path) as walk:
        for start, end in walk.initializers():
            found = walk.weight(start, end, path)
            if found is not None:
                yield found


def located(path: Path, location: str) -> Path:
    """Return a data file of a program.

    It has to be in the program's folder or below. A program that is a symbolic link, as in the
    cache of a hub, may name files of its own folder and of its target's.

    Raises:
        CheckpointError: it is elsewhere.
    """
    ways = (PurePosixPath(location), PureWindowsPath(location))
    file = path.parent / location
    if "\0" in location:
        raise DamagedError("the name of its data has a NUL in it", remedy=_WRITE_ANEW, path=path)
    if not any(way.is_absolute() or way.drive for way in ways):
        homes = {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}  # noqa: PTH120
        if any(Path(os.path.realpath(file)).is_relative_to(home) for home in homes):
            return file
    link = f", a link to {os.path.realpath(file)}" if os.path.islink(file) else ""  # noqa: PTH114
    raise CheckpointError(
        f"expected its data in its own folder, found that it names {reprlib.repr(location)}{link}",
        remedy="Export it anew, with its data beside it; if the file is not yours, do not use it.",
        path=path,
    )


def piece_of(entries: Mapping[str, str], path: Path) -> Piece:
    """Read the entries of a tensor.

    Raises:
        DamagedError: they make no sense.
    """
    numbers = [entries.get(key) for key in ("offset", "length")]
    if not entries.get("location") or not all(
        number is None or (number.isascii() and number.isdecimal() and len(number) < 20)
        for number in numbers
    ):
        raise DamagedError(
            "a tensor of it names its data in a way that is not ONNX's",
            remedy=_WRITE_ANEW,
            path=path,
        )
    offset, length = (None if number is None else int(number) for number in numbers)
    return Piece(entries["location"], offset or 0, length)


def _require_whole(file: Path, location: str, needed: int, path: Path) -> None:
    try:
        size = file.stat().st_size if file.is_file() else None
    except OSError as error:
        raise CheckpointError(
            f"its data file {reprlib.repr(location)} cannot be read ({error.strerror})",
            remedy="Check that you may read it.",
            path=path,
        ) from error
    if size is None:
        raise DamagedError(
            f"its data file {reprlib.repr(location)} is missing",
            remedy=f"Fetch it, and put it at {file}; or export the program in one file.",
            path=path,
        )
    if size < needed:
        raise DamagedError(
            f"its data file {reprlib.repr(location)} has {size:,} bytes, and {needed:,} are needed",
            remedy="Fetch all of it (git lfs pull), or export the program anew.",
            path=path,
        )


def _pieces(path: Path) -> list[Piece]:
    with walking(path) as walk:
        return [piece_of(entries, path) for entries in walk.external()]


@contextmanager
def walking(path: Path) -> Iterator[Walk]:
    """Open a program to read its fields.

    Raises:
        CheckpointError, DamagedError: as for `data_files`.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            yield Walk(data)
    except OSError as error:
        raise CheckpointError(
            f"cannot be read ({error.strerror})", remedy="Check that you may read it.", path=path
        ) from error
    except (ValueError, IndexError) as error:
        raise DamagedError(f"it is no ONNX ({error})", remedy=_WRITE_ANEW, path=path) from error


class Walk:
    """Reads a protobuf message (protobuf.dev, encoding); contents are skipped."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.size = len(data)
        self._left = _MOST_FIELDS

    def external(self) -> Iterator[dict[str, str]]:
        """Yield the entries of each tensor whose contents are in another file.

        Raises:
            ValueError, IndexError: it is no such message.
        """
        waiting = [("model", 0, len(self._data))]
        while waiting:
            kind, start, end = waiting.pop()
            if kind == _TENSOR:
                entries = self._entries(start, end)
                if entries is not None:
                    yield entries
                continue
            parts = _PARTS[kind]
            for number, value in self._fields(start, end):
                if number in parts and isinstance(value, range):
                    waiting.append((parts[number], value.start, value.stop))

    def graph(self) -> tuple[dict[bytes, int], list[bytes]]:
        """The number of the dtype of each initializer, by its name; and the names of all that is
        multiplied.

        Raises:
            ValueError, IndexError: it is no such message.
        """
        dtypes: dict[bytes, int] = {}
        inputs: list[bytes] = []
        for number, graph in self._fields(0, len(self._data)):
            if number != 7 or not isinstance(graph, range):
                continue
            for field, value in self._fields(graph.start, graph.stop):
                if not isinstance(value, range):
                    continue
                inside = list(self._fields(value.start, value.stop)) if field in (1, 5) else []
                if field == 1 and self._last(inside, 4) in _MULTIPLYING:
                    inputs += [self.contents(each) for known, each in inside if known == 1]
                elif field == 5:
                    kinds = [each for known, each in inside if known == 2]
                    dtypes[self._last(inside, 8)] = next(
                        (kind for kind in kinds if isinstance(kind, int)), 0
                    )
        return dtypes, inputs

    def initializers(self) -> Iterator[tuple[int, int]]:
        """Yield the place of each initializer.

        Raises:
            ValueError, IndexError: it is no such message.
        """
        for number, graph in self._fields(0, len(self._data)):
            if number == 7 and isinstance(graph, range):
                for field, value in self._fields(graph.start, graph.stop):
                    if field == 5 and isinstance(value, range):
                        yield value.start, value.stop

    def weight(self, start: int, end: int, path: Path) -> tuple[str, Stored] | None:
        """Return the name and the values of an initializer; None of another dtype.

        Raises:
            ValueError, IndexError: it is no such message, or its contents do not fit its sizes.
        """
        # Imported here, because they import numpy, which pytest's idle workers do not need.
        import numpy as np

        from clipcheck.gates.weights import Stored

        fields = list(self._fields(start, end))
        (kind,) = [v for n, v in fields if n == _DATA_TYPE and isinstance(v, int)] or (0,)
        dtype = _DTYPES.get(kind, "")
        if dtype not in _STORED:
            return None
        entries = self._entries(start, end)
        contents = self._last(fields, _RAW)
        if entries is not None:
            piece = piece_of(entries, path)
            with located(path, piece.location).open("rb") as file:
                file.seek(piece.offset)
                contents = file.read(-1 if piece.length is None else piece.length)
        elif not contents and dtype == "float32":
            contents = self._last(fields, _FLOATS)
        elif not contents:
            numbers = self._integers(v for n, v in fields if n == _INTS)
            contents = np.array(numbers, dtype=np.uint16).tobytes()
        shape = self._integers(value for number, value in fields if number == _DIMS)
        values = np.frombuffer(contents, dtype=_STORED[dtype]).reshape(shape)
        return self._last(fields, _NAME).decode(), Stored(values, dtype)

    def _integers(self, values: Iterable[int | range]) -> list[int]:
        """Return the numbers of a repeated field, packed or not."""
        found: list[int] = []
        for value in values:
            if isinstance(value, int):
                found.append(value)
                continue
            place = value.start
            while place < value.stop:
                number, place = self._varint(place)
                found.append(number)
        return found

    def _last(self, fields: list[tuple[int, int | range]], wanted: int) -> bytes:
        """Return the contents of a field that occurs once."""
        return next((self.contents(value) for number, value in fields if number == wanted), b"")

    def _entries(self, start: int, end: int) -> dict[str, str] | None:
        entries = {}
        external = False
        for number, value in self._fields(start, end):
            if number == _LOCATION:
                external = value == _EXTERNAL
            elif number == _ENTRY and isinstance(value, range):
                texts = {n: self._text(v) for n, v in self._fields(value.start, value.stop)}
                entries[texts.get(1, "")] = texts.get(2, "")
        return entries if external else None

    def _text(self, value: int | range) -> str:
        return self.contents(value).decode()

    def contents(self, value: int | range) -> bytes:
        """Return the bytes at a place; none for an integer."""
        return self._data[value.start : value.stop] if isinstance(value, range) else b""

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int | range]]:
        """Yield each field's number with its value: an integer, or the place of its contents."""
        return ((number, value) for number, value, _ in self.spans(start, end))

    def spans(self, start: int, end: int) -> Iterator[tuple[int, int | range, range]]:
        """Yield as well the place of the field with its number."""
        place = start
        while place < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"it has more than {_MOST_FIELDS:,} fields")
            begin = place
            tag, place = self._varint(place)
            value: int | range = 0
            kind = tag & 7
            if kind == 0:
                value, place = self._varint(place)
            else:
                fixed = {1: 8, 5: 4}
                size, place = (fixed[kind], place) if kind in fixed else self._size(kind, place)
                value = range(place, place + size)
                place += size
            if place > end:
                raise ValueError("a field ends behind its message")
            yield tag >> 3, value, range(begin, place)

    def _size(self, kind: int, place: int) -> tuple[int, int]:
        if kind != 2:
            raise ValueError(f"a field is of kind {kind}")
        return self._varint(place)

    def _varint(self, place: int) -> tuple[int, int]:
        """Read an integer in groups of 7 bits, the lowest first; the last has its top bit clear."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
        raise ValueError("a number has no end")
