"""Program files: recognise them by their content, and make sure that reading one runs no code.

`torch.export.load` is not safe for untrusted files (torch 2.14): it unpickles records, evaluates
expressions of sizes, executes guards, imports modules that a tree of outputs names, and loads
native code in the file. `require_inert` refuses all of these.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import reprlib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.directories import unreadable
from clipcheck.checkpoints.openvino_data import is_openvino
from clipcheck.checkpoints.pickles import survey
from clipcheck.checkpoints.records import ZIP_MAGIC, MappedFile, Records
from clipcheck.errors import CheckpointError, DamagedError, UnsafeError

_EXECUTORCH = b"ET"
"""Bytes 4 and 5 of a program of ExecuTorch, which its version follows (schema/program.fbs)."""

_COMPILED = "data/aotinductor/"
_MODELS = "models/"

_ONNX_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
"""Fields of a ModelProto (onnx.proto3): version, producer, graph, opsets, metadata and the like."""

_ONNX_GRAPH, _ONNX_OPSETS = 7, 8

_ONNX_START = {1, _ONNX_GRAPH}
"""Fields that an ONNX program has before its opsets: its version and its graph."""

_MOST_ONNX_FIELDS = 10_000
"""Most fields of a ModelProto: a few, and one for each opset, function and piece of metadata."""

_MOST_JSON = 64 << 20
"""Most bytes of a JSON record. The largest released model's program has about 10 MB."""

_OF_TENSORS = re.compile(
    r"collections\.OrderedDict|torch\.(\w+Storage|storage\.\w+|Size|device)"
    r"|torch\._utils\._rebuild_tensor_v[23]|torch\.nn\.parameter\.Parameter"
    r"|torch\._utils\._rebuild_parameter|torch\.(b?float|complex|u?int|bool)\w*"
)
"""Names that a pickle of example inputs may use. torch allows more, some of which allocate as much
memory as the file says."""

_OPERATORS = re.compile(r"torch\.ops\.\w+\.[\w.]+|torch\.sym_\w+|_operator\.\w+|math\.\w+")
"""Functions that a program may call: torch's registered operators, and arithmetic on sizes."""

_IMPORTING = ("__enum__", "default_factory_module")
"""Keys in a tree of inputs or outputs that make torch import a module (torch.utils._pytree)."""

_PLAIN = (
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.namedtuple",
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.deque",
    "torch.fx.immutable_collections.immutable_list",
    "torch.fx.immutable_collections.immutable_dict",
    "torch.Size",
)
"""Containers that torch itself defines (torch.utils._pytree)."""

_MULTIPLYING = re.compile(r"torch\.ops\.aten\.(linear|matmul|mm|bmm|addmm|conv2d|convolution)\..*")
"""Operators with nearly all of a CLIP model's arithmetic."""

_GRAPH = ("nodes", "tensor_values")

_DTYPES = {6: "float16", 7: "float32", 8: "float64", 13: "bfloat16"}
"""Floating-point dtypes of programs by number (torch._export.serde.schema.ScalarType)."""

_NAME = re.compile(r"[A-Z]\w*|[a-z]{1,4}\d+|oo|int_oo|inf")
"""Names in expressions of sizes: sympy's classes, symbols such as ``s0``, and infinity. Python's
own functions are none of these."""

_MOST_EXPRESSION = 10_000
"""Most characters of an expression of sizes."""

_ATTRIBUTES = ("size", "stride", "shape", "ndim", "dim")

_ARITHMETIC = (
    ast.Expression,
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Call,
    ast.keyword,
    ast.Subscript,
    ast.Name,
    ast.Attribute,
    ast.Constant,
    ast.expr_context,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.boolop,
)


def kind_of(path: Path) -> Format | None:
    """Return ``pt2``, ``onnx``, ``openvino`` or ``executorch`` by the file's content, or None.

    Raises:
        CheckpointError: the file cannot be read, is an ONNX program that was cut off, or is a zip
            file that torch did not write.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
                if is_openvino(path):
                    return Format.OPENVINO
                if file.read(4).startswith(_EXECUTORCH):
                    return Format.EXECUTORCH
                file.seek(len(ZIP_MAGIC))
                return Format.ONNX if _is_onnx(file) else None
        records = Records(MappedFile(path))
    except OSError as error:
        raise unreadable(path, error) from error
    return Format.PT2 if "archive_format" in records else None


def is_compiled(path: Path) -> bool:
    """Whether a ``pt2`` file has native code, like AOTInductor's packages."""
    return bool(Records(MappedFile(path)).names(_COMPILED))


def require_inert(path: Path) -> None:
    """Raise if `torch.export.load` would run code of the file other than the program when called.

    Raises:
        UnsafeError: it would.
        DamagedError: the file was altered, or is none that `torch.export.save` writes.
    """
    records = Records(MappedFile(path))
    records.verify(name for name in records.names() if not name.startswith("data/weights/weight_"))
    for reason in _dangers(records, path):
        raise UnsafeError(
            f"reading it could run code ({reason}); nothing was run",
            remedy="Export the model anew with torch.export.save, of tensors alone; if the file "
            "is not yours, do not load it with anything else.",
            path=path,
        )
    if not any(_programs(records)):
        raise DamagedError(
            "expected an exported program, found none in the archive",
            remedy="Write the file with torch.export.save.",
            path=path,
        )


def require_plain(path: Path) -> None:
    """Raise if the inputs or outputs of an exported program use classes that torch lacks.

    Raises:
        CheckpointError: they use a class that the file does not have.
    """
    records = Records(MappedFile(path))
    for name in _programs(records):
        specs = [v for k, v in _fields(_json(records, name, path)) if k in ("in_spec", "out_spec")]
        types = (value for key, value in _fields(specs) if key == "type" and value is not None)
        for found in types:
            if found not in _PLAIN:
                raise CheckpointError(
                    f"its inputs or outputs are of a class of its own, {reprlib.repr(found)}, "
                    "which is not in the file",
                    remedy="Export a module whose forward takes tensors, and gives a tuple or a "
                    "dict of tensors.",
                    path=path,
                )


def computing_dtype(path: Path) -> str | None:
    """Return the dtype of most matrix products and convolutions of an exported program, or None.

    Raises:
        DamagedError: the file was altered, or is none that `torch.export.save` writes.
    """
    records = Records(MappedFile(path))
    found: Counter[str] = Counter()
    for name in _programs(records):
        for graph in (v for k, v in _fields(_json(records, name, path)) if k == "graph"):
            found.update(_products(graph))
    return found.most_common(1)[0][0] if found else None


def _products(graph: Any) -> Iterator[str]:
    """Yield the dtype of each product in a graph."""
    nodes, values = (graph.get(key) if isinstance(graph, dict) else None for key in _GRAPH)
    if not isinstance(nodes, list) or not isinstance(values, dict):
        return
    for node in nodes:
        if not isinstance(node, dict) or not _MULTIPLYING.fullmatch(str(node.get("target"))):
            continue
        for key, name in _fields(node.get("outputs")):
            tensor = values.get(name) if key == "name" and isinstance(name, str) else None
            number = tensor.get("dtype") if isinstance(tensor, dict) else None
            if isinstance(number, int) and number in _DTYPES:
                yield _DTYPES[number]


def _dangers(records: Records, path: Path) -> Iterator[str]:
    if records.names(_COMPILED):
        yield "it has native code in it"
    for name in records.names("data/"):
        folder, file = name.rpartition("/")[::2]
        if folder == "data/sample_inputs":
            if not _is_tensors(records.read(name)):
                yield f"{name} is a pickle of more than tensors"
        elif file.endswith("_config.json"):
            if any(entry.get("use_pickle") for entry in _entries(_json(records, name, path))):
                yield f"{name} names pickles"
        elif not file.startswith(("weight_", "tensor_")):
            yield f"{name} is a pickle"
    for name in _programs(records):
        try:
            yield from _dangers_of_program(_json(records, name, path))
        except RecursionError:
            yield "a text in it nests too deeply to be read"


def _programs(records: Records) -> Iterator[str]:
    return (name for name in records.names(_MODELS) if name.endswith(".json"))


def _entries(config: Any) -> list[dict[str, Any]]:
    found = config.get("config") if isinstance(config, dict) else None
    entries = found.values() if isinstance(found, dict) else ()
    return [each for each in entries if isinstance(each, dict)]


def _is_tensors(data: bytes) -> bool:
    """Whether it is a zip file of `torch.save` with only tensors."""
    import torch

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            # Compressed, its weights would take any number of times as much memory.
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                return False
            (pickled,) = (info for info in infos if info.filename.endswith("/data.pkl"))
            names, odd = survey(archive.read(pickled), room=len(data))
        if odd or not all(map(_OF_TENSORS.fullmatch, names)):
            return False
        torch.load(io.BytesIO(data), weights_only=True)
    # zipfile, torch and its unpickler raise nearly anything on an altered file.
    except Exception:
        return False
    return True


def _json(records: Records, name: str, path: Path) -> Any:
    try:
        if records[name].size > _MOST_JSON:
            raise ValueError(f"it has more than {_MOST_JSON:,} bytes")
        return json.loads(records.read(name))
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            f"the record {name!r} is not JSON ({str(error)[:120]})",
            remedy="Write the file again with torch.export.save.",
            path=path,
        ) from error


def _dangers_of_program(program: Any) -> Iterator[str]:
    guards = program.get("guards_code") if isinstance(program, dict) else None
    if not isinstance(guards, list | None):
        yield "its guards are no list"
        return
    for key, value in [*_fields(program), *(("guard", guard) for guard in guards or ())]:
        if key in _IMPORTING:
            yield "its tree of inputs or outputs imports a module"
        elif key == "target" and not (isinstance(value, str) and _OPERATORS.fullmatch(value)):
            yield f"it calls {reprlib.repr(value)}, which is no operator"
        elif key in ("expr_str", "guard") and not _is_arithmetic(value):
            yield f"{reprlib.repr(value)} is no expression of sizes"


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield all keys with their values at any depth, also in JSON within strings."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each.items()
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, str) and each.lstrip()[:1] in ("[", "{"):
            try:
                waiting.append(json.loads(each))
            except ValueError:  # Text that only starts like JSON.
                continue


def _is_arithmetic(expression: object) -> bool:
    text = str(expression).strip()
    if len(text) > _MOST_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return _NAME.fullmatch(node.id) is not None
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES
    if isinstance(node, ast.Constant):
        text = node.value
        return isinstance(text, int | float) or (isinstance(text, str) and text.isidentifier())
    return isinstance(node, _ARITHMETIC)


def _is_onnx(file: BinaryIO) -> bool:
    """Whether it is a protobuf message with the fields of an ONNX model: its graph and its opsets.

    A message is a sequence of fields, each with its number and kind first (protobuf.dev, encoding).
    Their contents are skipped.

    Raises:
        DamagedError: it begins with the fields of an ONNX model, and ends in its graph or before
            its opsets.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    seen: set[int] = set()
    for _ in range(_MOST_ONNX_FIELDS):
        if file.tell() >= size:
            if seen >= _ONNX_START and _ONNX_OPSETS not in seen:
                raise _cut_off(file)
            return {_ONNX_GRAPH, _ONNX_OPSETS} <= seen
        tag = _varint(file)
        number, kind = (tag or 0) >> 3, (tag or 0) & 7
        if number not in _ONNX_FIELDS or kind not in (0, 2):
            return False
        value = _varint(file)
        seen.add(number)
        if value is None or (kind == 2 and file.tell() + value > size):
            if seen >= _ONNX_START:
                raise _cut_off(file)
            return False
        if kind == 2:
            file.seek(value, os.SEEK_CUR)
    return False


def _cut_off(file: BinaryIO) -> DamagedError:
    return DamagedError(
        "the file begins like an ONNX program, but ends early: it was cut off", path=file.name
    )


def _varint(file: BinaryIO) -> int | None:
    """Read an integer in groups of seven bits, the lowest first; the last has its top bit clear."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
