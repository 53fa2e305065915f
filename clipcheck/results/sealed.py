"""Files of arrays with a JSON header and a digest of both, as safetensors."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.results.document import parse_json, to_json

Array = NDArray[Any]

_HEADER = "clipcheck"
"""Key of the header in the file's metadata."""

_DIGEST = "digest"
"""Field of the header with the digest of its other fields and the arrays."""


def encode(kind: str, schema: int, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Return the bytes of a file.

    Args:
        kind: which file of clipcheck it is.
        schema: version of the header and the names of arrays.
        header: values that JSON has, or dataclasses.
        arrays: by name.
    """
    from safetensors.numpy import save

    # Views would be written as the whole array.
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    plain = json.loads(to_json({"kind": kind, "schema": schema, **header}, indent=None))
    return save(whole, {_HEADER: json.dumps({**plain, _DIGEST: _digest(plain, whole)})})


def decode(data: bytes, kind: str, schema: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the header and the arrays of a file that `encode` made.

    Raises:
        ValueError: it is none, damaged, or of another kind or schema.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    text = _header(data)
    plain = json.loads(text)
    header = parse_json(text)
    if not isinstance(header, dict) or header.get("kind") != kind:
        raise ValueError("it is another file of clipcheck")
    if header.get("schema") != schema:
        found = reprlib.repr(header.get("schema"))
        raise ValueError(f"it has schema {found}; this clipcheck reads schema {schema}")
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise ValueError(f"it is cut off or damaged ({error})") from error
    if header.get(_DIGEST) != _digest(plain, arrays):
        raise ValueError("it was altered after it was written: its digest differs")
    return header, arrays


def bytes_of(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file: a device or a pipe may have no end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than ``most``.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MB")
    return data


def _header(data: bytes) -> str:
    """Return the header, which safetensors has at the start: its length in 8 bytes, then JSON."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length < 1 << 30:
        raise ValueError("it is no safetensors file")
    if len(data) < 8 + length:
        raise ValueError("it is cut off, or no safetensors file")
    outer = parse_json(data[8 : 8 + length])
    written = outer.get("__metadata__", {}) if isinstance(outer, dict) else {}
    if not isinstance(written, dict) or not isinstance(written.get(_HEADER), str):
        raise ValueError("it has no header of clipcheck")
    header: str = written[_HEADER]
    parse_json(header)
    return header


def _digest(plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """Return a digest of the header, as JSON has it, and of the arrays."""
    head = {name: value for name, value in plain.items() if name != _DIGEST}
    hashed = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        hashed.update(f"{name} {array.dtype} {array.shape} ".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()
