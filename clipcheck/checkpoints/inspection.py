"""Finds what an archive's code asks for, read as text: nothing is imported or run."""

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
"""Names of the dtypes that TorchScript's code has by number (c10/core/ScalarType.h)."""


_MOST_CODE = 4 << 20
"""Bytes. Parsing takes up to 900 times as much memory; the largest released archive has 2 MB."""


_MOST_NAME = 40
"""Characters of a device that are told."""


@dataclass(frozen=True)
class Code:
    """Constants in the code of an archive that loading it elsewhere has to replace.

    Attributes:
        devices: how often each device is named.
        dtypes: how often a cast or a new tensor asks for each dtype.
    """

    devices: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Patched:
    """Constants in an archive's code that were rewritten to run it elsewhere or in another dtype.

    Attributes:
        device: the device that all others were rewritten to.
        dtype: the dtype that those of the weights were rewritten to; None where they were left.
        weights: see `clipcheck.checkpoints.checkpoint.Checkpoint.weight_dtypes`.
        devices: by device, the number of places that named it and were rewritten.
        casts: by dtype, the number of casts to it that were rewritten.
        kept: by dtype, the number of casts to it that were left as they are.
    """

    device: str
    dtype: str | None
    weights: tuple[str, ...]
    devices: Mapping[str, int]
    casts: Mapping[str, int]
    kept: Mapping[str, int]


def format_version(records: Records) -> str:
    """The version of torch's file format that a zip file says it is of.

    Raises:
        DamagedError: it does not say.
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
        DamagedError: the code is not what TorchScript writes.
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
            # Python's, of what looks odd in code of its own. This code is not for Python.
            warnings.simplefilter("ignore")
            # As text: of bytes, the first line could name any encoding.
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
        # The dtype comes second, or third where a device comes before it.
        after = [argument for argument in call.args[1:3] if not isinstance(argument, ast.Call)]
        _count_dtype(after[0] if after else None, code)
    for keyword in call.keywords:
        if keyword.arg == "dtype":
            _count_dtype(keyword.value, code)


def _attribute(function: ast.expr) -> str:
    """``name`` of a call of ``torch.name``, else nothing."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.attr if function.value.id == "torch" else ""
    return ""


def _count_dtype(value: ast.expr | None, code: Code) -> None:
    if isinstance(value, ast.Constant) and type(value.value) is int:
        number = value.value
        unknown = f"dtype {number}" if 0 <= number < 1000 else "what is no dtype"
        code.dtypes[SCALAR_TYPES.get(number, unknown)] += 1
