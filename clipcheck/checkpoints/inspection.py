"""Count the devices and dtypes in an archive's code, read as text: no code is imported or run."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from clipcheck.checkpoints.records import Records
from clipcheck.errors import DamagedError

SCALAR_TYPES = {3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 15: "bfloat16"}
"""Dtypes by their number in TorchScript code (c10/core/ScalarType.h)."""


_MOST_CODE = 4 << 20
"""Most bytes of code. Parsing needs up to 900 times as much memory; the largest released archive
has 2 MB."""


_MOST_NAME = 40
"""Most characters of a device's name in a report."""


@dataclass(frozen=True)
class Code:
    """Constants in an archive's code that must be replaced to run it on another device or in
    another dtype.

    Attributes:
        devices: by device, the number of places that name it.
        dtypes: by dtype, the number of casts and new tensors that use it.
    """

    devices: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class Patched:
    """Constants in an archive's code that were rewritten to run it on another device or in another
    dtype.

    Attributes:
        device: the new device of all rewritten places.
        dtype: the new dtype of the casts to the weights' dtypes; None if no cast was rewritten.
        weights: see `clipcheck.checkpoints.checkpoint.Checkpoint.weight_dtypes`.
        devices: by old device, the number of places that were rewritten.
        casts: by dtype, the number of casts to it that were rewritten.
        kept: by dtype, the number of casts to it that were not rewritten.
    """

    device: str
    dtype: str | None
    weights: tuple[str, ...]
    devices: Mapping[str, int]
    casts: Mapping[str, int]
    kept: Mapping[str, int]


def format_version(records: Records) -> str:
    """Read the version of torch's file format from a zip file.

    Raises:
        DamagedError: the record has no version.
    """
    found = records.read("version").strip()
    if not re.fullmatch(rb"\d{1,9}", found):
        raise DamagedError(
            f"expected the number of a format in the record 'version', found {found[:20]!r}",
            path=records.file.path,
        )
    return found.decode()


def read_code(records: Records) -> Code:
    """Count the devices and dtypes that the code of an archive names.

    Raises:
        DamagedError: the code is too large, or it is not TorchScript code.
    """
    code = Code()
    for call in _calls(records):
        _count(call, code)
    return code


def _calls(records: Records) -> Iterator[ast.Call]:
    names = [name for name in records.names("code/") if name.endswith(".py")]
    if sum(records[name].size for name in names) > _MOST_CODE:
        raise DamagedError(f"it has more than {_MOST_CODE:,} bytes of code", path=records.file.path)
    for name in names:
        for node in ast.walk(_parse(records, name)):
            if isinstance(node, ast.Call):
                yield node


def _parse(records: Records, name: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            # Python warns of odd Python code, but this is TorchScript.
            warnings.simplefilter("ignore")
            # Parse text, not bytes: the first line of bytes could name any encoding.
            return ast.parse(records.read(name).decode())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DamagedError(
            f"the record {name!r} is not TorchScript code ({error})", path=records.file.path
        ) from error


def _count(call: ast.Call, code: Code) -> None:
    function = _attribute(call.func)
    device = call.args[0] if function == "device" and call.args else None
    if isinstance(device, ast.Constant) and isinstance(device.value, str):
        code.devices[device.value[:_MOST_NAME]] += 1
    elif function == "to":
        # The dtype is the second argument, or the third if a device comes before it.
        after = [argument for argument in call.args[1:3] if not isinstance(argument, ast.Call)]
        _count_dtype(after[0] if after else None, code)
    for keyword in call.keywords:
        if keyword.arg == "dtype":
            _count_dtype(keyword.value, code)


def _attribute(function: ast.expr) -> str:
    """Return ``name`` for the function ``torch.name``, else an empty string."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.attr if function.value.id == "torch" else ""
    return ""


def _count_dtype(value: ast.expr | None, code: Code) -> None:
    if isinstance(value, ast.Constant) and type(value.value) is int:
        number = value.value
        unknown = f"dtype {number}" if 0 <= number < 1000 else "an invalid dtype"
        code.dtypes[SCALAR_TYPES.get(number, unknown)] += 1
