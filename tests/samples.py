"""Checkpoints of a few hundred kilobytes, and functions that alter a zip file."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from clipcheck.checkpoints.architecture import Architecture, ResNet, ViT
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.configs_of_open_clip import open_clip_config
from clipcheck.writers.convert import write
from clipcheck.writers.synthesize import synthesize

MINUTE = Architecture(
    embed_dim=64,
    image_resolution=16,
    vision=ViT(layers=1, width=64, patch_size=8),
    text_width=64,
    text_layers=1,
    context_length=8,
    vocab_size=100,
)
MINUTE_RESNET = replace(MINUTE, image_resolution=32, vision=ResNet(layers=(1, 2, 1, 1), width=2))
"""One of its stages has a block that takes what it gets as it is, as all have in larger models."""

FILE_FORMATS = (Format.ARCHIVE, Format.STATE_DICT, Format.SAFETENSORS)
"""Formats of weights in a single file."""

Weights = dict[str, torch.Tensor]


def minute_config(folder: Path, architecture: Architecture = MINUTE) -> Path:
    """Write a configuration that says how weights compute, by default `MINUTE`'s."""
    path = folder / "minute.json"
    path.write_text(json.dumps(open_clip_config(architecture)), encoding="utf-8")
    return path


def minute_weights() -> Weights:
    """Return seeded weights of `MINUTE`, which tests may alter."""
    return {key: tensor.clone() for key, tensor in _weights().items()}


@functools.cache
def _weights() -> Weights:
    return synthesize(MINUTE)


@functools.cache
def minute_bytes(form: Format, architecture: Architecture = MINUTE) -> bytes:
    """Return a file of this format with seeded weights, by default `minute_weights`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "minute"
        write(architecture, synthesize(architecture), path, form)
        return path.read_bytes()


def saved(value: object, *, legacy: bool = False) -> bytes:
    """Return what `torch.save` writes; ``legacy`` as torch did before 1.6."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def onnx_naming(path: Path, *locations: str) -> Path:
    """Write an ONNX program whose weights are in these files, and the files, of 8 bytes each."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    for number, location in enumerate(locations):
        tensor = graph.initializer.add(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[2])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        file = path.parent / location
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes([number]) * 8)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def record_names(data: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()


def repacked(
    data: bytes,
    changes: Mapping[str, bytes] | None = None,
    *,
    drop: Callable[[str], bool] = lambda _: False,
    compress: Callable[[str], bool] = lambda _: False,
) -> bytes:
    """Return the zip file with other contents and right checksums. Names are without the top
    folder."""
    changes = changes or {}
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            folder, _, name = info.filename.partition("/")
            if drop(name):
                continue
            method = zipfile.ZIP_DEFLATED if compress(name) else zipfile.ZIP_STORED
            contents = changes.get(name, source.read(info))
            target.writestr(zipfile.ZipInfo(f"{folder}/{name}"), contents, method)
    return out.getvalue()


# Where fields are in a record's entry of the directory (PKWARE APPNOTE 4.3.12).
FLAGS, METHOD, CRC32, STORED, SIZE, COMMENT_SIZE, OFFSET = (8, 10, 16, 20, 24, 32, 42)


def entry(data: bytes, name: str) -> int:
    """Return the position of the record's entry in the directory. ``name`` is without the top
    folder."""
    start = data.index(b"PK\x01\x02")
    while True:
        name_size, extra_size, comment_size = struct.unpack_from("<3H", data, start + 28)
        full = data[start + 46 : start + 46 + name_size].decode()
        if full.partition("/")[2] == name:
            return start
        start += 46 + name_size + extra_size + comment_size


def with_field(data: bytes, name: str, field: int, value: int, form: str = "<I") -> bytes:
    """Return the zip file with another number in the directory's entry of the record ``name``."""
    altered = bytearray(data)
    struct.pack_into(form, altered, entry(data, name) + field, value)
    return bytes(altered)


def code_record(data: bytes) -> str:
    """The name of a record with code, without the top folder.

    Which ones there are depends on what the process traced before: TorchScript numbers the names
    of classes that it has seen already.
    """
    names = (name.partition("/")[2] for name in record_names(data))
    return next(
        n for n in names if n.startswith("code/__torch__/multimodal/") and n.endswith(".py")
    )


def contents_at(data: bytes, name: str) -> int:
    """Return the position of the contents of the record ``name``."""
    (header,) = struct.unpack_from("<I", data, entry(data, name) + OFFSET)
    name_size, extra_size = struct.unpack_from("<2H", data, header + 26)
    return int(header + 30 + name_size + extra_size)


def flipped(data: bytes, position: int, mask: int = 0x10) -> bytes:
    """Return the bytes with some bits of one of them flipped."""
    altered = bytearray(data)
    altered[position] ^= mask
    return bytes(altered)
