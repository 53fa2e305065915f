"""Load a TorchScript archive, and change its device and dtype.

The code of a traced archive has the device and the dtype of tracing as constants. `patch` rewrites
them in every method of every submodule. It must run before the first call, because calls cache
their plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from clipcheck.checkpoints.inspection import Patched
from clipcheck.errors import DamagedError
from clipcheck.system import torchscript_support

SCALAR_TYPES = {
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bfloat16: 15,
}
"""Numbers of the floating dtypes in TorchScript's code (c10/core/ScalarType.h)."""

_NAMES = {number: str(dtype).removeprefix("torch.") for dtype, number in SCALAR_TYPES.items()}

_NORMALISATIONS = ("aten::layer_norm", "aten::batch_norm", "aten::group_norm")
"""Operators whose weights stay float32 in every dtype, as in the released files."""

_CONVOLUTIONS = ("aten::conv2d", "aten::_convolution", "aten::convolution")

ANEW = (
    "write it again: clipcheck convert ARCHIVE --architecture ARCH -o fixed.pt, where ARCH is the "
    "architecture of its training: a released name, open_clip:NAME, or a configuration file."
)
"""End of a remedy for an archive whose code does not tell its architecture."""


def load_archive(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Return the archive's module in evaluation mode, unpatched, with its weights on ``device``.

    This trusts the file: TorchScript has no safe mode.

    Raises:
        UnavailableError: this torch or Python has no TorchScript.
        DamagedError: the interpreter cannot load it.
    """
    torchscript_support.require()
    try:
        with torchscript_support.silenced():
            # By path: an open file would take several times as long.
            module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise DamagedError(
            f"TorchScript cannot load this archive ({reason})",
            remedy=f"Copy or download the file again, or {ANEW}",
            path=path,
        ) from error
    module.eval()
    return module


def patch(
    module: torch.jit.ScriptModule,
    device: torch.device,
    dtype: torch.dtype | None = None,
    weights: Collection[str] = (),
) -> Patched:
    """Rewrite the code of ``module`` for ``device`` and ``dtype``.

    Casts to the stored dtypes of the weights are rewritten. A cast to any other dtype is part of
    the model's computation: it stays, and is judged.

    Args:
        module: an archive that was not called yet. Its weights do not change.
        device: replaces every device in the code.
        dtype: replaces the dtypes of the weights in the code; None keeps them.
        weights: see `clipcheck.checkpoints.checkpoint.Checkpoint.weight_dtypes`.

    Returns:
        The number of rewritten places, and of casts that stayed.
    """
    devices: Counter[str] = Counter()
    casts: Counter[int] = Counter()
    kept: Counter[int] = Counter()
    stored = {number for number, name in _NAMES.items() if name in weights}
    new = None if dtype is None else SCALAR_TYPES[dtype]
    for graph in graphs(module):
        for node in device_constants(graph):
            if node.s("value") != str(device):
                devices[node.s("value")] += 1
                node.s_("value", str(device))
        for node, index, number in float_casts(graph):
            if new is None or number not in stored or _stays_float32(node, number):
                kept[number] += 1
            elif number != new:
                casts[number] += 1
                _replace_float(graph, node, index, new)
    return Patched(
        device=str(device),
        dtype=None if new is None else _NAMES[new],
        weights=tuple(weights),
        devices=dict(devices),
        casts={_NAMES[number]: count for number, count in casts.items()},
        kept={_NAMES[number]: count for number, count in kept.items()},
    )


def _stays_float32(cast: Any, number: int) -> bool:
    """Whether a cast to float32 feeds only normalisations, whose weights are float32.

    In the code of a float32 archive these casts look like those to the dtype of the model.
    """
    return number == SCALAR_TYPES[torch.float32] and all(
        use.user.kind() in _NORMALISATIONS and use.offset == 0 for use in cast.output().uses()
    )


def graphs(module: torch.jit.ScriptModule) -> Iterator[Any]:
    """Yield the graph of every method of every submodule, each once: scripted modules of one class
    share graphs.

    Each submodule lists its methods: the second call of a module is ``forward1``, a third
    ``forward2``, and a module that is never called, such as an attention's ``out_proj``, has none.
    """
    seen: set[str] = set()
    for submodule in module.modules():
        script: Any = submodule._c
        kind = script._type().qualified_name()
        if kind not in seen:
            seen.add(kind)
            for name in script._method_names():
                yield script._get_method(name).graph


def device_constants(graph: Any) -> list[Any]:
    """Return the nodes of ``graph`` and its nested blocks that are a device."""
    constants = graph.findAllNodes("prim::Constant")
    return [node for node in constants if str(node.output().type()) == "Device"]


def float_casts(graph: Any) -> list[tuple[Any, int, int]]:
    """Return the nodes of ``graph`` and its nested blocks that request a floating dtype.

    Returns:
        Each node with the index of the dtype's input, and the dtype's number in `SCALAR_TYPES`.
    """
    return [
        (use.user, use.offset, number)
        for constant in graph.findAllNodes("prim::Constant")
        if (number := _floating(constant)) is not None
        for use in constant.output().uses()
        if _is_dtype(use.user, use.offset)
    ]


def _replace_float(graph: Any, node: Any, index: int, new: int) -> None:
    """Give a cast a separate constant with the value ``new``.

    Importing an archive merges equal constants of a graph: the number of half precision, 5, may be
    the same node as a dimension.
    """
    constant = graph.create("prim::Constant")
    constant.i_("value", new)
    constant.output().setType(torch._C.IntType.get())
    constant.insertBefore(node)
    node.replaceInput(index, constant.output())


def _floating(constant: Any) -> int | None:
    """Return the number in ``constant`` if it is a floating dtype's, else None."""
    if not constant.hasAttribute("value") or constant.kindOf("value") != "i":
        return None
    number: int = constant.i("value")
    return number if number in _NAMES else None


def _is_dtype(node: Any, index: int) -> bool:
    """Whether an input of an operator is a dtype: the number 5 may mean anything else."""
    return node.kind().startswith("aten::") and index in _dtype_arguments(node.schema())


@cache
def _dtype_arguments(schema: str) -> frozenset[int]:
    """Return the indices of the inputs that are dtypes, for an overload of an operator."""
    if schema == "(no schema)":
        return frozenset()
    arguments = torch._C.parse_schema(schema).arguments
    return frozenset(index for index, argument in enumerate(arguments) if argument.name == "dtype")


def used_weights(module: torch.jit.ScriptModule, method: str) -> set[str]:
    """Return the keys of the weights on which the result of a method depends.

    Only the code is analysed, not the effect of the values.
    """
    graph = module._c._get_method(method).inlined_graph
    torch._C._jit_pass_dce(graph)
    return {
        _key(node)
        for node in graph.findAllNodes("prim::GetAttr")
        if node.output().type().kind() == "TensorType"
    }


def convolves_uncast(module: torch.jit.ScriptModule, method: str) -> bool:
    """Whether a method convolves its first input without a cast, and so accepts only the dtype of
    the weights."""
    graph = module._c._get_method(method).inlined_graph
    values = [list(graph.inputs())[1]]
    for value in values:
        for use in value.uses():
            if use.user.kind() == "prim::unchecked_cast":  # from Optional[Tensor]
                values.append(use.user.output())
            elif use.user.kind() in _CONVOLUTIONS and use.offset == 0:
                return True
    return False


def tensor_arguments(method: Any) -> int:
    """Return the number of tensors that a method takes, including optional ones."""
    kinds = [str(argument.type) for argument in method.schema.arguments[1:]]
    return sum(kind in ("Tensor", "Optional[Tensor]") for kind in kinds)


def tensors_taken(method: Any) -> tuple[str, ...]:
    """Return the names of the tensors for a call of a method; up to two optional ones count."""
    arguments = [each for each in method.schema.arguments[1:] if "Tensor" in str(each.type)]
    needed = sum(not each.has_default_value() for each in arguments)
    return tuple(each.name for each in arguments[: max(needed, min(2, len(arguments)))])


def _key(node: Any) -> str:
    """Return the name of an attribute, with the names of its modules."""
    names: list[str] = []
    while node.kind() == "prim::GetAttr":
        names.insert(0, node.s("name"))
        node = node.inputsAt(0).node()
    return ".".join(names)
