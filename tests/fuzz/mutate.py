"""Alter inputs by their own structure, so that most of them get past the first check."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import pickletools
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

NUMBERS = (0, 1, 2, 7, 64, 127, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 60, -1)
"""Sizes, counts and offsets that a parser may not have been written for."""

MOST_BYTES = 1 << 20
"""Of an altered input."""

_FORMS = ("<B", "<H", "<I", "<Q", ">I", ">Q")


def in_bytes(data: bytes, rng: random.Random) -> bytes:
    """Ignore any structure: change, remove or repeat bytes, or replace some by a number."""
    altered = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randrange(len(altered) or 1), rng.choice((1, 1, 2, 4, 8, 16, 64))
        action = rng.randrange(7)
        if action == 0:
            altered[at : at + 1] = bytes([rng.randrange(256)])
        elif action == 1 and altered:
            altered[at] ^= 1 << rng.randrange(8)
        elif action == 2:
            del altered[at : at + length]
        elif action == 3:
            altered[at:at] = rng.randbytes(length)
        elif action == 4:
            altered[at:at] = altered[at : at + length] * rng.choice((1, 2, 50))
        elif action == 5:
            form = rng.choice(_FORMS)
            number = rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(form))
            altered[at : at + struct.calcsize(form)] = struct.pack(form, number)
        else:
            del altered[at:]
    return bytes(altered[:MOST_BYTES])


# --------------------------------------------------------------------------- JSON

_VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *(None, True, False, "", [], {}, 0.5, -0.0, 1e308, 10**400),
    *(float("nan"), float("inf"), "\ud800", "\x00", "\x1b[2J", "../x", "/etc/passwd", "x" * 5000),
    *("[[[[", '{"a":[', "[" * 3000, [[[[[[]]]]]], {"a": {"b": []}}, [1, 2], ["a"], "1", "é"),
)


def in_json(data: bytes, rng: random.Random) -> bytes:
    """Change, remove, move, repeat or nest a value, a key or an item."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return in_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = _edited(document, rng)
    try:
        text = json.dumps(document, ensure_ascii=rng.random() < 0.9)
        if rng.random() < 0.02:
            text = text.replace("0", "9" * 5000, 1)
        if rng.random() < 0.02:
            text = text.replace(":", ":" + "[" * 2000, 1)
        altered = text.encode("utf-8", "surrogatepass")[:MOST_BYTES]
    except (RecursionError, ValueError):
        return in_bytes(data, rng)
    return in_bytes(altered, rng) if rng.random() < 0.1 else altered


def _edited(document: Any, rng: random.Random) -> Any:
    places: list[tuple[Any, Any]] = []
    values = [document]
    while values:
        value = values.pop()
        keys: Any = ()
        if isinstance(value, dict):
            keys = list(value)
        elif isinstance(value, list):
            keys = range(len(value))
        for key in keys:
            places.append((value, key))
            values.append(value[key])
    if not places or rng.random() < 0.02:
        return _value(rng)
    holder, key = rng.choice(places)
    other, other_key = rng.choice(places)
    action = rng.randrange(8)
    if action == 0:
        del holder[key]
    elif action == 1:
        holder[key] = other[other_key] if _flat(other[other_key]) else _value(rng)
    elif action == 2 and isinstance(holder[key], str):
        text = holder[key]
        at = rng.randrange(len(text) + 1)
        holder[key] = text[:at] + rng.choice(("\x00", "..", "/", "9", "[", "\ud800")) + text[at:]
    elif action == 3 and isinstance(holder, dict):
        holder[rng.choice((f"{key}x", str(other_key), "", "\ud800", "__enum__"))] = holder[key]
    elif action == 4 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif action == 5:
        for _ in range(rng.choice((1, 2, 300))):
            holder[key] = [holder[key]]
    elif action == 6 and type(holder[key]) in (int, float):
        holder[key] = holder[key] * rng.choice((-1, 2, 1000)) + rng.choice((-1, 0, 1))
    else:
        holder[key] = _value(rng)
    return document


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(_VALUES))


def _flat(value: Any) -> bool:
    """Whether a value is neither a mapping nor a list, so that nothing is put into itself."""
    return not isinstance(value, dict | list)


# --------------------------------------------------------------------------- pickles

_OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
_PIECES = (
    *(b"(", b"t", b")", b"}", b"]", b"l", b"d", b"0", b"1", b"2", b"R", b"b", b"Q", b"\x81", b"s"),
    *(b"u", b"a", b"e", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91", b"\x94", b"h\x00"),
    *(b"N", b"\x88", b"K\x05", b"X\x01\x00\x00\x00a", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"),
    *(b"r\xff\xff\xff\x7f", b"p99999999999\n", b"j\x00\x00\x00\x00", b"I99999999999999999999\n"),
    *(b"cos\nsystem\n", b"c__torch__\nM\n", b"ctorch\nFloatStorage\n", b"cbuiltins\nbytearray\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n"),
    *(b"ctorch._utils\n_rebuild_sparse_tensor\n", b"c_codecs\nencode\n", b"ctorch\nfloat32\n"),
    *(b"\x96\xff\xff\xff\xff\x00\x00\x00\x00", b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00", b"q\x00"),
    *(b"cargparse\nNamespace\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\nscalar\n"),
    *(b"X\x07\x00\x00\x00visual.", b"X\x05\x00\x00\x00text.", b"cbuiltins\ngetattr\n"),
    *(b"2\x86" * 30, b"(" * 300, b"\x85" * 2000, b"ctorch._tensor\n_rebuild_from_type_v2\n"),
)


def in_pickle(data: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, move or insert opcodes, or change their arguments."""
    pieces = _pieces(data)
    if len(pieces) < 3:
        return in_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if len(pieces) < 2:
            break
        at = rng.randrange(1, len(pieces))
        action = rng.randrange(7)
        if action == 0:
            del pieces[at]
        elif action == 1:
            pieces.insert(at, rng.choice(pieces))
        elif action == 2:
            pieces.insert(at, rng.choice(_PIECES))
        elif action == 3:
            other = rng.randrange(1, len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif action == 4:
            pieces[at] = _number_in_place_of(pieces[at], rng)
        elif action == 5:
            pieces[at] = in_bytes(pieces[at], rng)
        else:
            pieces.insert(at, rng.choice(_OPCODES))
    return b"".join(pieces)[:MOST_BYTES]


def _pieces(data: bytes) -> list[bytes]:
    """Split a file into opcodes with their arguments, through all pickles that follow each
    other."""
    starts: list[int] = []
    file = io.BytesIO(data)
    with contextlib.suppress(Exception):
        while file.tell() < len(data):
            starts += [position for _, _, position in pickletools.genops(file)]
    bounds = [*starts, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def _number_in_place_of(piece: bytes, rng: random.Random) -> bytes:
    number = rng.choice((*NUMBERS, -3, 8, 1 << 35))
    if piece[:1] in b"KMJI\x8a" or rng.random() < 0.3:
        raw = number.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + raw
    return piece[:1] + in_bytes(piece[1:], rng)


# --------------------------------------------------------------------------- zip files

_NAMES = ("a/../../x", "/etc/x", "a\\b", "a/data.pkl\0x", "A/DATA.PKL", "a/", "", "b/version")


def in_zip(data: bytes, rng: random.Random) -> bytes:
    """Change a field of a header, or write the file anew with other records."""
    action = rng.randrange(4)
    if action == 0:
        return in_bytes(data, rng)
    if action == 1:
        return _with_header_changed(data, rng)
    return _written_anew(data, rng)


def _with_header_changed(data: bytes, rng: random.Random) -> bytes:
    marks = [b"PK\x01\x02"] * 3 + [b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"]
    mark = rng.choice(marks)
    starts = [at for at in range(len(data) - 4) if data[at : at + 4] == mark]
    if not starts:
        return in_bytes(data, rng)
    altered = bytearray(data)
    at = rng.choice(starts) + rng.randrange(4, 56)
    form = rng.choice(("<H", "<I", "<Q"))
    if at + 8 <= len(altered):
        (before,) = struct.unpack_from(form, altered, at)
        number = rng.choice((*NUMBERS, before + 1, before - 1, len(data)))
        struct.pack_into(form, altered, at, number % (1 << 8 * struct.calcsize(form)))
    return bytes(altered)


def _written_anew(data: bytes, rng: random.Random) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            records = [(info.filename, source.read(info)) for info in source.infolist()]
    except Exception:
        return in_bytes(data, rng)
    if not records:
        return in_bytes(data, rng)
    at = rng.randrange(len(records))
    name, contents = records[at]
    action = rng.randrange(5)
    if action == 0:
        del records[at]
    elif action == 1:
        records.append((rng.choice((name, name.upper(), rng.choice(_NAMES))), contents))
    elif action == 2:
        records[at] = rng.choice(_NAMES), contents
    else:
        records[at] = name, in_bytes(contents, rng)
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as target:
        warnings.simplefilter("ignore")  # of two records with one name
        for name, contents in records:
            method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
            target.writestr(zipfile.ZipInfo(name), contents, method)
    return out.getvalue()[:MOST_BYTES]


# --------------------------------------------------------------------------- others


def in_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Alter the header as JSON; its length stays right most of the time."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8 or rng.random() < 0.15:
        return in_bytes(data, rng)
    header = in_json(data[8 : 8 + length], rng)
    size = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS) % (1 << 64)
    return size.to_bytes(8, "little") + header + data[8 + length :]


def in_png(data: bytes, rng: random.Random) -> bytes:
    """Change, remove, repeat or move a chunk, and correct its checksum."""
    chunks = []
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    if not chunks or rng.random() < 0.2:
        return in_bytes(data, rng)
    at = rng.randrange(len(chunks))
    action = rng.randrange(5)
    if action == 0:
        del chunks[at]
    elif action == 1:
        chunks.insert(at, rng.choice(chunks))
    elif action == 2:
        kind = rng.choice((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"tRNS", b"PLTE", b"gAMA", b"eXIf"))
        text = b"a\0" + rng.choice((b"", b"\0" + zlib.compress(b"x" * 999), rng.randbytes(12)))
        chunks.insert(at, kind + text)
    else:
        chunks[at] = chunks[at][:4] + in_bytes(chunks[at][4:], rng)
    return data[:8] + b"".join(map(_chunk, chunks))


def _chunk(chunk: bytes) -> bytes:
    length = max(0, len(chunk) - 4).to_bytes(4, "big")
    return length + chunk + zlib.crc32(chunk).to_bytes(4, "big")


def pack(*parts: bytes) -> bytes:
    """Join several files into one input."""
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def unpack(data: bytes, count: int) -> list[bytes]:
    """Split the input into the files again, however it was altered."""
    parts = []
    for _ in range(count - 1):
        length = int.from_bytes(data[:4], "little")
        parts.append(data[4 : 4 + length])
        data = data[4 + length :]
    return [*parts, data[4:]]


def of_parts(*mutators: Mutator) -> Mutator:
    """Alter one of several files."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        parts = unpack(data, len(mutators))
        at = rng.randrange(len(parts))
        parts[at] = mutators[at](parts[at], rng)
        return pack(*parts)

    return mutate
