"""Read the weights of programs from their files, without torch and without running anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipcheck.checkpoints import onnx_data
from clipcheck.checkpoints.checkpoint import Format, Program
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.gates.weights import Stored

_FOLDER = "data/weights/"
_CONFIG = f"{_FOLDER}model_weights_config.json"

_DTYPES = {6: ("float16", "<f2"), 7: ("float32", "<f4"), 13: ("bfloat16", "<u2")}
"""Dtypes by number (torch._export.serde.schema.ScalarType), and how numpy reads them."""


def weights_of(program: Program) -> Iterator[tuple[str, Stored]]:
    """Yield the name and the values of each weight in float32 or half precision, one at a time.

    Other formats than ONNX and ``pt2`` have weights that only their libraries can read: nothing.

    Raises:
        CheckpointError: a file cannot be read; `DamagedError` if it is damaged.
    """
    for part in program.parts:
        if part.format is Format.ONNX:
            yield from onnx_data.weights(part.path)
        elif part.format is Format.PT2:
            yield from _of_pt2(part.path)


def _of_pt2(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the weights that lie in the file as they are: contiguous, and in its own byte order."""
    records = Records(MappedFile(path))
    if _CONFIG not in records:
        return
    for name, entry in json.loads(records.read(_CONFIG))["config"].items():
        meta = entry["tensor_meta"]
        dtype, read_as = _DTYPES.get(meta["dtype"], ("", ""))
        shape = [each["as_int"] for each in meta["sizes"]]
        data = records.read(f"{_FOLDER}{entry['path_name']}")
        strides = [each["as_int"] for each in meta["strides"]]
        whole = np.zeros(shape, dtype=np.uint8).strides if dtype else ()
        if (
            dtype
            and tuple(strides) == whole
            and len(data) == np.dtype(read_as).itemsize * int(np.prod(shape, dtype=np.int64))
        ):
            yield name, Stored(np.frombuffer(data, dtype=read_as).reshape(shape), dtype)
