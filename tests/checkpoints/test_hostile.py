"""Files that attack their reader: each is refused with our own error, without side effects.

Nothing of them runs, nothing is written, and neither memory nor time goes beyond a bound: the
command line runs in another process that may grow by a gigabyte and has a minute.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.configs_of_transformers import transformers_config
from clipcheck.checkpoints.records import ZIP_MAGIC
from clipcheck.harness.search import saved as replays
from clipcheck.inputs.examples import Example
from tests.bounded import Bounded
from tests.checkpoints.test_unpickle import module_with, tensor_of
from tests.samples import (
    MINUTE,
    OFFSET,
    SIZE,
    STORED,
    contents_at,
    entry,
    minute_bytes,
    minute_weights,
    repacked,
    saved,
    with_field,
)
from tests.thorough import thorough

MARK = "marked"
"""A file of this name would show that something was run."""

MOST_SECONDS = 30.0
"""The slowest takes three seconds where nothing else runs."""

MOST_GROWN = 700 << 20
"""Bytes. The keys of a pickle that is refused at one of the last take the most."""

HUGE = 1 << 60


@dataclass(frozen=True)
class Attack:
    """A file or a folder, and what is said of it.

    Attributes:
        write: writes it to the path that it is given.
        said: a regular expression for what is told.
        command: what opens it.
    """

    write: Callable[[Path], object]
    said: str
    command: tuple[str, ...] = ("inspect",)


def of(data: Callable[[], bytes], said: str) -> Attack:
    """Write a file with these bytes."""
    return Attack(lambda path: path.write_bytes(data()), said)


# ------------------------------------------------------------------ pickles


def archive(pickled: bytes, record: str = "data.pkl") -> bytes:
    return repacked(minute_bytes(Format.ARCHIVE), {record: pickled})


def state_dict(pickled: bytes) -> bytes:
    return repacked(minute_bytes(Format.STATE_DICT), {"data.pkl": pickled})


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


LARGE = "".join(map(chr, range(0x4E00, 0x9E00))) * 8
"""Text that takes its length squared to write as punycode."""

COMMAND = text(f"touch {MARK}")


class Calling:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def laughing(levels: int) -> bytes:
    """Return a tuple of twice the same tuple, and so on: a few bytes as a pickle."""
    return b")" + b"".join(b"q\x00h\x00\x86" for _ in range(levels))


def nested(levels: int) -> bytes:
    return b")" + b"\x85" * levels


def of_many_keys(value: bytes) -> bytes:
    items = b"".join(text(f"{n:x}") + value for n in range(200_000))
    return b"\x80\x02}(" + items + b"u."


def storage(elements: int, key: str = "0") -> bytes:
    tag = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    return tag + number(elements) + b"tQ"


def endless() -> bytes:
    """Return a tensor of 2^40 pairs that repeat one number."""
    sizes = b"(" + number(1 << 40) + number(2) + b"t(" + number(0) * 2 + b"t"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage(1, "2")
        + number(0)
        + sizes
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def restated() -> bytes:
    """Pickle a sound tensor that then gets the state of an unsound one."""
    state = b"}" + text("shape") + b"(" + number(1 << 35) + b"ts"
    return module_with(a=tensor_of(shape=(1,)) + state + b"b")


ASKS = r"asks for {}, which"
PICKLES = {
    "a command in an archive": of(
        lambda: archive(pickle.dumps(Calling(os.system, f"touch {MARK}"), protocol=2)),
        ASKS.format(rf"{os.name}\.system"),
    ),
    "a command in the constants of a program that is compared": of(
        lambda: archive(pickle.dumps(Calling(eval, f"open('{MARK}','w')"), protocol=4)),
        ASKS.format(r"builtins\.eval"),
    ),
    "a command by a dotted name": of(
        lambda: archive(
            b"\x80\x04" + text("torch._utils") + text("os.system") + b"\x93" + COMMAND + b"\x85R."
        ),
        ASKS.format(r"torch\._utils\.os\.system"),
    ),
    "a command by an old opcode": of(
        lambda: archive(b"(" + COMMAND + b"ios\nsystem\n."), ASKS.format(r"os\.system")
    ),
    "a command in a state dict": of(
        lambda: saved({**minute_weights(), "x": Calling(os.system, f"touch {MARK}")}),
        ASKS.format(rf"{os.name}\.system"),
    ),
    "a command in an old state dict": of(
        lambda: saved({"x": Calling(os.system, f"touch {MARK}")}, legacy=True),
        ASKS.format(rf"{os.name}\.system"),
    ),
    "torch's own function that loads a file": of(
        lambda: saved({"x": Calling(torch.load, "x")}), ASKS.format(r"torch\.serialization\.load")
    ),
    "a function that reads an attribute, of a class that is let pass": of(
        lambda: saved({"x": Calling(getattr, argparse.Namespace, "mro")}),
        ASKS.format("getattr"),
    ),
    "numpy's own function that runs code": of(
        lambda: saved({"x": Calling(np.testing.runstring, f"open('{MARK}','w')", {})}),
        ASKS.format(r"numpy\.testing\._private\.utils\.runstring"),
    ),
    "a file within the file, which torch would load": of(
        lambda: saved({"x": Calling(torch.storage._load_from_bytes, b"x")}),
        ASKS.format(r"torch\.storage\._load_from_bytes"),
    ),
    "thirty thousand models in one file": of(
        lambda: of_models(30_000), "expected one CLIP model, found 30000: 0, 1, 2"
    ),
    "names of many parts": of(
        lambda: of_tensors("visual." * 30 + f"{n:x}.text" for n in range(10_000)),
        "it lacks 'positional_embedding'",
    ),
    "mappings that hold themselves": of(
        lambda: in_itself(), "found none under its keys: 0, 1, .* and 296 more"
    ),
    "objects that share one state": of(lambda: restating(200), "found a list"),
    "torch's own function that reads an attribute": of(
        lambda: state_dict(b"\x80\x02ctorch._utils\n_import_dotted_name\n" + COMMAND + b"\x85R."),
        ASKS.format(r"torch\._utils\._import_dotted_name"),
    ),
    "an object with a number of billions": of(
        lambda: archive(b"\x80\x02}r\xff\xff\xff\x7f."), "gives an object the number 2147483647"
    ),
    "a tuple that holds itself a billion times, as a key": of(
        lambda: archive(b"\x80\x02}" + laughing(60) + b"Ns."), "the same objects too many times"
    ),
    "such a tuple as a key of a state dict": of(
        lambda: state_dict(b"\x80\x02}" + laughing(60) + b"Ns."), "the same objects too many times"
    ),
    "such a tuple as the name of a storage": of(
        lambda: archive(
            b"\x80\x02(" + text("storage") + text("float32") + laughing(20) + laughing(19)
            + number(1) + b"tQ."
        ),
        "no known dtype or no name",
    ),
    "such a tuple as a name in a module": of(
        lambda: archive(b"\x80\x02c__torch__\nM\n)\x81}" + laughing(20) + b"Nsb."),
        "an attribute without a name",
    ),
    "tuples in tuples, deeper than the stack, as a key": of(
        lambda: archive(b"\x80\x02}" + nested(200_000) + b"Ns."), "more than 200 levels"
    ),
    "such tuples as a key of a state dict": of(
        lambda: state_dict(b"\x80\x02}" + nested(200_000) + b"Ns."), "more than 200 levels"
    ),
    "modules in modules with long names": of(
        lambda: archive(
            b"\x80\x02" + text("n" * 900) + b"q\x000" + b"c__torch__\nM\n)\x81}h\x00" * 20
            + b"c__torch__\nM\n)\x81" + b"sb" * 20 + b"."
        ),
        "with a very long one",
    ),
    "200,000 keys of an archive": of(
        lambda: archive(b"\x80\x02c__torch__\nM\n)\x81" + of_many_keys(b"N")[2:-1] + b"b."),
        "more than 262,144 opcodes",
    ),
    "200,000 keys of a state dict": of(
        lambda: state_dict(of_many_keys(b"N")), "more than 262,144 opcodes"
    ),
    "a pickle of many bytes": of(
        lambda: state_dict(b"\x80\x02" + text("x" * (65 << 20)) + b"."),
        "more than 67,108,864 bytes",
    ),
    "twenty gigabytes by a call that torch allows": of(
        lambda: state_dict(b"\x80\x02c__builtin__\nbytearray\n" + number(20 << 30) + b"\x85R."),
        ASKS.format("bytearray"),
    ),
    "a slow codec that torch allows": of(
        lambda: state_dict(
            b"\x80\x02c_codecs\nencode\n" + text(LARGE) + text("punycode") + b"\x86R."
        ),
        ASKS.format(r"_codecs\.encode"),
    ),
    "a sparse weight of any number of indices": of(
        lambda: state_dict(
            b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n" + b"(N(NNNtt" + b"R."
        ),
        "expected dense weights",
    ),
    "a storage that is called, for torch to print": of(
        lambda: state_dict(b"\x80\x02" + storage(4096, "1") + b")R."), "object is not callable"
    ),
    "a storage that is named by another, for torch to print": of(
        lambda: state_dict(
            b"\x80\x02(" + text("storage") + b"ctorch\nFloatStorage\n" + storage(4096, "1")
            + text("cpu") + number(1) + b"tQ."
        ),
        "no known dtype or no name",
    ),
    "arguments that are a tensor without end": of(
        lambda: state_dict(b"\x80\x02ccollections\nOrderedDict\n" + endless() + b"R."),
        "a tensor with an impossible size",
    ),
    "a set of a tensor without end": of(
        lambda: state_dict(b"\x80\x02c__builtin__\nset\n" + endless() + b"\x85R."),
        "a tensor with an impossible size",
    ),
    "a state that is a tensor without end": of(
        lambda: state_dict(b"\x80\x02ccollections\nOrderedDict\n)R" + endless() + b"b."),
        "a tensor with an impossible size",
    ),
    "a tensor that is given another state": of(
        lambda: archive(restated()), "sets the state of an object that has none"
    ),
    "a function of clipcheck's that is given other defaults": of(
        lambda: archive(
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__defaults__") + b")s\x86b."
        ),
        "sets the state of an object that has none",
    ),
    "a tensor far out of its storage, in an old state dict": of(
        lambda: old(b"\x80\x02}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(("
                    + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
                    + number(1) + b"NtQ" + number(1 << 36) + b"K\x01\x85K\x01\x85\x89"
                    + b"ccollections\nOrderedDict\n)RtRs."),
        "reaches beyond its storage",
    ),
    "a storage of 2^60 elements in an old state dict": of(
        lambda: old(b"\x80\x02}" + text("a") + b"(" + text("storage") + b"ctorch\nFloatStorage\n"
                    + text("0") + text("cpu") + number(HUGE) + b"NtQs."),
        "a storage with more elements than the file has bytes",
    ),
}  # fmt: skip


def of_tensors(keys: Iterable[str]) -> bytes:
    """Write a state dict with one number under many keys."""
    one = saved({"a": torch.zeros(1)})
    with zipfile.ZipFile(io.BytesIO(one)) as archive:
        name = next(each for each in archive.namelist() if each.endswith("data.pkl"))
        pickled = archive.read(name)
    tensor = pickled[pickled.index(b"ctorch._utils") : pickled.rindex(b"s.")]
    first, *others = keys
    items = text(first) + tensor + b"r\x1e\x00\x00\x00"
    items += b"".join(text(key) + b"j\x1e\x00\x00\x00" for key in others)
    return repacked(one, {"data.pkl": b"\x80\x02}(" + items + b"u."})


def of_models(count: int) -> bytes:
    """Return the keys of so many models, one key for each tower."""
    return of_tensors(f"{n:x}.{part}.{n}" for n in range(count) for part in ("visual", "text"))


def in_itself() -> bytes:
    """Return mappings and attributes that contain themselves and nothing else."""
    space = b"cargparse\nNamespace\n)\x81r\x01\x00\x00\x00}" + text("a") + b"j\x01\x00\x00\x00sb"
    itself = b"".join(text(f"{n}") + b"h\x00" for n in range(300))
    return state_dict(b"\x80\x02}q\x00(" + itself + text("b") + space + b"u.")


def restating(count: int) -> bytes:
    """Pickle objects that share a state of many attributes."""
    state = b"}r\x01\x00\x00\x00(" + b"".join(text(f"{n:x}") + b"N" for n in range(50_000)) + b"u0"
    each = b"cargparse\nNamespace\n)\x81j\x01\x00\x00\x00b"
    return state_dict(b"\x80\x02" + state + b"](" + each * count + b"e.")


def old(pickled: bytes) -> bytes:
    """Write a state dict as torch did before 1.6, with another pickle for its state."""
    data = saved({}, legacy=True)
    file = io.BytesIO(data)
    for _ in range(3):
        pickle.load(file)
    return data[: file.tell()] + pickled + pickle.dumps([], protocol=2)


# ------------------------------------------------------------------ shapes


def expanded(changes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Write a state dict in which some weights, of any shape, repeat a single number."""
    wide = {key: torch.zeros(()).expand(shape) for key, shape in changes.items()}
    return saved({**minute_weights(), **wide})


def shared() -> bytes:
    """Write weights that share one storage: two thousand layers of 1 MB in a file of 1 MB."""
    base = torch.zeros(512, 512)
    return saved({f"transformer.resblocks.{n}.mlp.c_fc.weight": base for n in range(2000)})


def with_stride(stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Write a state dict with a tensor of two by two numbers, in a storage of 64 bytes."""
    size = b"(" + number(2) * 2 + b"t"
    steps = b"(" + b"".join(map(number, stride)) + b"t"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(16) + number(offset) + size + steps
    pickled = b"\x80\x02}" + text("a") + tensor + b"\x89ccollections\nOrderedDict\n)RtRs."
    return repacked(minute_bytes(Format.STATE_DICT), {"data.pkl": pickled, "data/0": bytes(64)})


SHAPES = {
    "terabytes of one number, in a state dict": of(
        lambda: expanded({"positional_embedding": (10**9, 64)}), "they repeat what they hold"
    ),
    "terabytes of one number, in an archive": of(
        lambda: archive(module_with(a=tensor_of(shape=(1 << 39,), stride=(0,)))),
        "they repeat what they hold",
    ),
    "many weights in one storage": of(shared, "they repeat what they hold"),
    "a text of a hundred thousand tokens": of(
        lambda: expanded({"positional_embedding": (100_000, 64)}),
        r"at most 4096 tokens of a text, found 100,000",
    ),
    "an image of a hundred thousand patches": of(
        lambda: expanded({"visual.positional_embedding": (301**2 + 1, 64)}),
        r"at most 4096 patches of an image, found 90,601",
    ),
    "an image of a hundred thousand pixels a side": of(
        lambda: expanded({
            "visual.positional_embedding": (64**2 + 1, 64), "visual.conv1.weight": (64, 3, 80, 80)
        }),
        r"at most 4096 pixels a side, found 5,120",
    ),
    "a dimension beyond 64 bits": of(
        lambda: archive(module_with(a=tensor_of(shape=(HUGE, HUGE), stride=(0, 0)))),
        "an impossible size",
    ),
    "a stride out of the storage": of(
        lambda: with_stride((1000, 1)), "reaches beyond its storage"
    ),
    "a negative stride": of(
        lambda: with_stride((-1, 1), 2), "a tensor with an impossible size"
    ),
    "an offset out of the storage": of(
        lambda: with_stride((2, 1), HUGE), "a tensor with an impossible size"
    ),
    "a stride out of an archive's storage": of(
        lambda: archive(module_with(a=tensor_of(shape=(2,), stride=(1 << 30,)))),
        "reaches beyond its storage",
    ),
    "a storage larger than its record": of(
        lambda: archive(module_with(a=tensor_of(shape=(5000,), length=5000))),
        "fewer than its tensor needs",
    ),
}  # fmt: skip


# ------------------------------------------------------------------ zip files


def zipped(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as target:
        for name, contents in records.items():
            target.writestr(zipfile.ZipInfo(name), contents, method)
    return out.getvalue()


def with_code(contents: bytes, count: int) -> bytes:
    """Write an archive with this number of compressed records of code."""
    file = io.BytesIO(repacked(minute_bytes(Format.ARCHIVE)))
    with zipfile.ZipFile(file, "a") as target:
        for n in range(count):
            target.writestr(f"minute/code/x{n}.py", contents, zipfile.ZIP_DEFLATED, 9)
    return file.getvalue()


def quoting(count: int, size: int) -> bytes:
    """Write records that contain the headers of those behind them, and share one kernel (Fifield
    2019)."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    kernel = squeezer.compress(bytes(size)) + squeezer.flush()
    body, length, entries = kernel, size, []
    crc = zlib.crc32(bytes(size))
    for n in reversed(range(count)):
        name = f"a/code/{n}.py".encode()
        sizes = struct.pack("<3I2H", crc, len(body), length, len(name), 0)
        header = struct.pack("<4s5H", ZIP_MAGIC, 20, 0, 8, 0, 0x21) + sizes + name
        entries.append((name, sizes, len(header) + len(body)))
        quoted = header if n else b""
        crc = zlib.crc32(quoted + b"\0")  # of no account: it is refused before
        body = (
            header + body
            if not n
            else struct.pack("<BHH", 0, len(header), len(header) ^ 0xFFFF) + header + body
        )
        length += len(quoted)
    whole = body
    directory = b""
    for name, sizes, from_end in entries:
        directory += struct.pack("<4s6H", b"PK\x01\x02", 20, 20, 0, 8, 0, 0x21) + sizes
        directory += struct.pack("<3H2I", 0, 0, 0, 0, len(whole) - from_end) + name
    plain = b"a/data/0"
    at = len(whole)
    whole += struct.pack("<4s5H3I2H", ZIP_MAGIC, 20, 0, 0, 0, 0x21, 0, 0, 0, len(plain), 0) + plain
    directory += (
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\x01\x02",
            20,
            20,
            0,
            0,
            0,
            0x21,
            0,
            0,
            0,
            len(plain),
            0,
            0,
            0,
            0,
            0,
            at,
        )
        + plain
    )
    count += 1
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(whole), 0)
    return whole + directory + end


def overlapping() -> bytes:
    """Write two records at one place."""
    data = repacked(minute_bytes(Format.STATE_DICT))
    (first,) = struct.unpack_from("<I", data, entry(data, "data/0") + OFFSET)
    name = b"minute/data/1"
    at = data.index(ZIP_MAGIC, first + 1)
    inner = struct.pack("<4s5H3I2H", ZIP_MAGIC, 20, 0, 0, 0, 0x21, 0, 4, 4, len(name), 0)
    altered = bytearray(data)
    start = at - len(inner) - len(name) - 4
    altered[start:at] = inner + name + bytes(4)
    whole = with_field(bytes(altered), "data/1", OFFSET, start)
    return with_field(with_field(whole, "data/1", SIZE, 4), "data/1", STORED, 4)


def header_in_another() -> bytes:
    """Write a record whose header is inside the one before, and its contents behind."""
    data = bytearray(repacked(minute_bytes(Format.STATE_DICT)))
    (second,) = struct.unpack_from("<I", data, entry(data, "data/1") + OFFSET)
    first = contents_at(data, "data/0")
    grown = second + 10 - first
    (header,) = struct.unpack_from("<I", data, entry(data, "data/0") + OFFSET)
    struct.pack_into("<2I", data, header + 18, grown, grown)
    whole = with_field(bytes(data), "data/0", SIZE, grown)
    return with_field(whole, "data/0", STORED, grown)


def within_the_directory() -> bytes:
    """Write a record that reaches into the directory."""
    data = bytearray(repacked(minute_bytes(Format.STATE_DICT)))
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        last = source.infolist()[-1]
    name = last.filename.partition("/")[2]
    struct.pack_into("<2I", data, last.header_offset + 18, *[last.file_size + 40] * 2)
    whole = with_field(bytes(data), name, SIZE, last.file_size + 40)
    return with_field(whole, name, STORED, last.file_size + 40)


def with_local(form: str, at: int, value: int) -> bytes:
    """Let the header of the record ``version`` contradict the directory."""
    data = bytearray(repacked(minute_bytes(Format.STATE_DICT)))
    (header,) = struct.unpack_from("<I", data, entry(data, "version") + OFFSET)
    struct.pack_into(form, data, header + at, value)
    return bytes(data)


def with_zip64(name: str) -> bytes:
    """Let the directory state 2^60 for the record, in a zip64 field."""
    data = repacked(minute_bytes(Format.STATE_DICT))
    at = entry(data, name)
    name_size, extra_size = struct.unpack_from("<2H", data, at + 28)
    extra = struct.pack("<2H2Q", 1, 16, HUGE, HUGE)
    altered = bytearray(data)
    struct.pack_into("<2I2H", altered, at + 20, *[0xFFFFFFFF] * 2, name_size, len(extra))
    behind = at + 46 + name_size
    altered[behind : behind + extra_size] = extra
    (size,) = struct.unpack_from("<I", altered, len(altered) - 10)
    struct.pack_into("<I", altered, len(altered) - 10, size + len(extra) - extra_size)
    return bytes(altered)


def of_a_large_directory() -> bytes:
    """Write three million empty records."""
    name = b"a/version"
    whole = struct.pack("<4s5H3I2H", ZIP_MAGIC, 20, 0, 0, 0, 0x21, 0, 0, 0, len(name), 0) + name
    line = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0x21, 0, 0, 0, len(name),
                       0, 0, 0, 0, 0, 0) + name  # fmt: skip
    directory = line * 3_000_000
    return (
        whole
        + directory
        + struct.pack(
            "<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(whole), 0
        )
    )


def with_two_ends() -> bytes:
    """Write two ends of a directory that contradict each other: torch's own, and the small one
    before it."""
    data = bytearray(minute_bytes(Format.STATE_DICT))
    (size,) = struct.unpack_from("<Q", data, len(data) - 98 + 40)
    struct.pack_into("<Q", data, len(data) - 98 + 40, size - 46)
    return bytes(data)


def named(name: str, contents: bytes = b"3") -> bytes:
    """Write a state dict with one more record."""
    records = {}
    with zipfile.ZipFile(io.BytesIO(minute_bytes(Format.STATE_DICT))) as source:
        records = {info.filename: source.read(info) for info in source.infolist()}
    return zipped({**records, name: contents})


def with_nul() -> bytes:
    """Write a record whose name continues after a NUL, where zipfile does not look."""
    data = named("minute/data.pkl_evil")
    return data.replace(b"minute/data.pkl_evil", b"minute/extra\0pkl_evil"[:20])


def twice() -> bytes:
    """Write two entries with one name in one directory."""
    data = named("minute/versiom")
    return data.replace(b"minute/versiom", b"minute/version")


ZIPS = {
    "a compressed record of gigabytes": of(
        lambda: with_code(bytes(65 << 20), 1), "compressed records have more than 67,108,864 bytes"
    ),
    "many compressed records": of(
        lambda: with_code(bytes(8 << 20), 20), "compressed records have more than 67,108,864 bytes"
    ),
    "code that takes a thousand times its size to parse": of(
        lambda: with_code(b"a;" * (3 << 20), 1), "more than 4,194,304 bytes of code"
    ),
    "records that quote each other": of(lambda: quoting(100, 1 << 19), "overlaps with another"),
    "two records in one place": of(overlapping, "overlaps with another"),
    "a record's header in another record": of(header_in_another, "overlaps with another"),
    "a record that goes on into the directory": of(within_the_directory, "overlaps with another"),
    "two records of one name": of(twice, r"two records have the same name\."),
    "two records whose names differ in capitals": of(
        lambda: named("minute/DATA.pkl"), "differ only in upper and lower case"
    ),
    "another method in a record's own header": of(
        lambda: with_local("<H", 8, 8), "has another compression method in the directory"
    ),
    "another size in a record's own header": of(
        lambda: with_local("<I", 22, 1), "has another size in the directory"
    ),
    "2^60 bytes in a field of zip64": of(
        lambda: with_zip64("data/3"), "the file was altered|ends beyond the end|has another size"
    ),
    "a directory of a hundred megabytes": of(
        of_a_large_directory, "its directory has more than 4,194,304 bytes"
    ),
    "two ends that do not agree": of(with_two_ends, "its two end records disagree"),
    "a name that leads out": of(
        lambda: named(f"minute/../../{MARK}"), r"a record is named 'minute/\.\./\.\./marked'"
    ),
    "a name from the root": of(
        lambda: named(f"minute//{MARK}"), "a record is named 'minute//marked'"
    ),
    "a name with a backslash": of(
        lambda: named(f"minute/..\\{MARK}"), r"a record is named 'minute/\.\.\\\\marked'"
    ),
    "a name with a NUL": of(with_nul, r"a record is named 'minute/extra\\x00"),
}  # fmt: skip


# ------------------------------------------------------------------ safetensors


def safetensors(header: object, size: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if size is None else size) + encoded + bytes(64)


def slot(begin: int, end: int, shape: object = (1,)) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def of_a_million_slots() -> bytes:
    told = json.dumps(slot(0, 0, [0]))
    keys = (f'"{n:x}":{told}' for n in range(1_000_000))
    return safetensors(b"{" + ",".join(keys).encode() + b"}")


SAFETENSORS = {
    "a header of 2^60 bytes": of(
        lambda: safetensors(b"{}", HUGE), r"expected a TorchScript archive, a state dict"
    ),
    "a header of a million keys": of(of_a_million_slots, "its header has [0-9,]+ bytes"),
    "weights in one place": of(
        lambda: safetensors({"a": slot(0, 4), "b": slot(0, 4)}), "not a valid safetensors file"
    ),
    "a negative place": of(lambda: safetensors({"a": slot(-4, 0)}), "not a valid safetensors file"),
    "a place of 2^60 bytes": of(
        lambda: safetensors({"a": slot(0, HUGE, [HUGE // 4])}), "not a valid safetensors file"
    ),
    "a shape beyond 64 bits": of(
        lambda: safetensors({"a": slot(0, 4, [HUGE, HUGE])}), "not a valid safetensors file"
    ),
    "deep nesting": of(
        lambda: safetensors(b'{"a":' + b"[" * 100_000), "not a valid safetensors file"
    ),
}


# ------------------------------------------------------------------ folders


def folder(config: bytes, index: Mapping[str, object] | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir()
        (path / "config.json").write_bytes(config)
        if index is None:
            data = minute_bytes(Format.SAFETENSORS)
            (path / "model.safetensors").write_bytes(data)
        else:
            told = {"metadata": {}, "weight_map": dict(index)}
            (path / "model.safetensors.index.json").write_text(json.dumps(told))

    return write


def config(**changes: object) -> bytes:
    return json.dumps({**transformers_config(MINUTE), **changes}).encode()


FOLDERS = {
    f"an index that names {name!r}": Attack(
        folder(config(), {"a": name}), "expected under 'a' the name of a file beside it"
    )
    for name in ("../../../../etc/passwd", "/etc/passwd", "x/../y", "..", "a\\..\\b", "a\0b")
} | {
    "a configuration nested a hundred thousand deep": Attack(
        folder(b'{"model_type":' + b"[" * 100_000), "it is not JSON"
    ),
    "a configuration with a number of a million digits": Attack(
        folder(b'{"model_type": ' + b"9" * 1_000_000 + b"}"), "it is not JSON"
    ),
    "a configuration of huge layers": Attack(
        folder(config(projection_dim=HUGE)),
        f"projection_dim is {HUGE} in place of a whole number from 1 to",
    ),
    "a configuration without end": Attack(
        folder(b" " * (33 << 20) + config()), "expected a JSON object, it is too long"
    ),
}


# ------------------------------------------------------------------ programs


PROGRAMS = {
    "a message of millions of fields": of(
        lambda: b"\x08\x01" * 10_000_000, "expected a TorchScript archive, a state dict"
    ),
}


# ------------------------------------------------------------------ what was saved


def replayed(alter: Callable[[Path], object]) -> Callable[[Path], None]:
    described = {
        "checkpoint": "missing.pt", "sha256": "ab" * 32, "device": "cpu", "dtype": "float32",
        "limits": {"atol": 0.01, "rtol": 0.1},
    }  # fmt: skip

    def write(path: Path) -> None:
        example = Example((Image.new("L", (1, 1)),), ("a",))
        replays.write(path, example, described, "")
        alter(path)

    return write


def picture(width: int, height: int) -> bytes:
    """Return a PNG file of that size, all zeros, compressed."""
    row = bytes(1 + min(width, 10_000_000) // 8)
    squeezer = zlib.compressobj(1)
    rows = min(height, max(1, 20_000_000 // len(row)))
    data = b"".join(squeezer.compress(row) for _ in range(rows)) + squeezer.flush()

    def chunk(kind: bytes, contents: bytes) -> bytes:
        crc = zlib.crc32(kind + contents)
        return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", crc)

    head = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_picture(data: Callable[[], bytes]) -> Callable[[Path], None]:
    return replayed(lambda path: (path / "image-1.png").write_bytes(data()))


def with_link(name: str, target: str) -> Callable[[Path], None]:
    def alter(path: Path) -> None:
        (path / name).unlink()
        (path / name).symlink_to(target)

    return replayed(alter)


def with_field_of(**changes: object) -> Callable[[Path], None]:
    def alter(path: Path) -> None:
        file = path / "example.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return replayed(alter)


def sparse(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return write


REPLAY = ("replay",)
DIFF = ("diff", "attack")
SAVED = {
    "a picture of a hundred million pixels": Attack(
        with_picture(lambda: picture(10_000, 10_000)), "it has 10000x10000 pixels", REPLAY
    ),
    "a picture of 2^62 pixels": Attack(
        with_picture(lambda: picture((1 << 31) - 1, (1 << 31) - 1)), "cannot be read", REPLAY
    ),
    "a picture that is wide and low": Attack(
        with_picture(lambda: picture(10_000_000, 1)), "it has 10000000x1 pixels", REPLAY
    ),
    "a picture that is a device without end": Attack(
        with_link("image-1.png", "/dev/zero"), r"image-1\.png is no file", REPLAY
    ),
    "a document that is a device without end": Attack(
        with_link("example.json", "/dev/zero"), r"example\.json is no file", REPLAY
    ),
    "a picture of another folder": Attack(
        with_field_of(images=["../../etc/passwd"]), "a picture is named", REPLAY
    ),
    "a prompt of more tokens than any model takes": Attack(
        with_field_of(prompts=[[1] * 5000]), "a prompt has 5000 ids", REPLAY
    ),
    "a token of 2^60": Attack(
        with_field_of(prompts=[[1, HUGE]]), "a prompt has numbers that are no ids", REPLAY
    ),
    "results of a gigabyte": Attack(sparse(1 << 30), "more than 16,777,216 bytes", DIFF),
    "results of a hundred thousand lists in each other": Attack(
        lambda path: path.write_bytes(b"[" * 100_000), "it is nested too deeply", DIFF
    ),
}  # fmt: skip


BULKY = (
    "200,000 keys of an archive",
    "200,000 keys of a state dict",
    "thirty thousand models in one file",
    "names of many parts",
    "objects that share one state",
    "a header of a million keys",
    "a directory of a hundred megabytes",
    "many compressed records",
    "a pickle of many bytes",
)
"""Attacks by size that take half a second or more."""

ATTACKS = {**PICKLES, **SHAPES, **ZIPS, **SAFETENSORS, **FOLDERS, **PROGRAMS, **SAVED}


@pytest.fixture(scope="module")
def bounded() -> Iterator[Bounded]:
    process = Bounded()
    yield process
    process.close()


@pytest.mark.parametrize("name", [thorough(n) if n in BULKY else n for n in ATTACKS])
def test_an_attack_is_refused_and_does_nothing_else(
    bounded: Bounded, name: str, tmp_path: Path
) -> None:
    attack = ATTACKS[name]
    attack.write(tmp_path / "attack")
    before = sorted(tmp_path.rglob("*"))
    outcome = bounded.run(*attack.command, "attack", folder=tmp_path)
    assert outcome.code == 2, outcome
    assert re.search(attack.said, outcome.err), outcome.err
    assert re.fullmatch(r"clipcheck: .+[^.\n]\. .+\.\n", outcome.err), outcome.err
    assert len(outcome.err) < 2000
    assert outcome.out == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert outcome.seconds < MOST_SECONDS
    assert outcome.grown < MOST_GROWN


def test_weights_that_are_links_are_read_as_the_hubs_cache_has_them(
    bounded: Bounded, tmp_path: Path
) -> None:
    home = tmp_path / "attack"
    folder(config())(home)
    (tmp_path / "blobs").mkdir()
    for name in ("model.safetensors", "config.json"):
        (home / name).rename(tmp_path / "blobs" / name)
        (home / name).symlink_to(f"../blobs/{name}")
    outcome = bounded.run("inspect", "attack", folder=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "folder of transformers" in outcome.out
