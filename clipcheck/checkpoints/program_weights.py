"""Read the weights of programs from their files, without torch and without running anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clipcheck.checkpoints import onnx_data
from clipcheck.checkpoints.checkpoint import Format, Program
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.errors import DamagedError
from clipcheck.gates.weights import Stored

_FOLDER = "data/weights/"
_CONFIG = f"{_FOLDER}model_weights_config.json"

_DTYPES = {6: "float16", 7: "float32", 13: "bfloat16"}
"""Dtypes by number (torch._export.serde.schema.ScalarType)."""

_READ_AS = {"float16": "<f2", "float32": "<f4", "bfloat16": "<u2"}
"""How numpy reads the contents of weights, by dtype."""


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


def is_narrow(path: Path) -> bool:
    """Whether an exported program stores weights in half precision.

    Raises:
        CheckpointError: it cannot be read; `DamagedError` if it is damaged.
    """
    return any(dtype != "float32" for dtype, *_ in _entries(Records(MappedFile(path))).values())


def _of_pt2(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the weights that lie in the file as they are: contiguous, and in its own byte order."""
    records = Records(MappedFile(path))
    for name, (dtype, shape, strides, place) in _entries(records).items():
        with _telling(path):
            values = np.frombuffer(records.read(f"{_FOLDER}{place}"), dtype=_READ_AS[dtype])
        if values.size == math.prod(shape) and strides == _contiguous(shape):
            yield name, Stored(values.reshape(shape), dtype)


_Entry = tuple[str, list[int], list[int], str]
"""Dtype, shape and strides of a weight, and the name of its record."""


def _entries(records: Records) -> dict[str, _Entry]:
    """Return the entry of each weight in float32 or half precision."""
    if _CONFIG not in records:
        return {}
    found: dict[str, _Entry] = {}
    with _telling(records.file.path):
        for name, entry in json.loads(records.read(_CONFIG))["config"].items():
            meta = entry["tensor_meta"]
            dtype = _DTYPES.get(meta["dtype"])
            if dtype is not None:
                shape, steps = ([int(e["as_int"]) for e in meta[k]] for k in ("sizes", "strides"))
                found[name] = dtype, shape, steps, entry["path_name"]
    return found


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"its table of weights is not that of torch.export ({error})",
            remedy="Write the file again with torch.export.save.",
            path=path,
        ) from error


def _contiguous(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[n + 1 :]) for n in range(len(shape))]
