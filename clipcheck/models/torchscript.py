"""Load a TorchScript archive and make it run on another device, or in another dtype.

A traced archive has the device and the dtype of the machine that it was traced on written into
its code. `patch` rewrites them in every method of every submodule, before the first call: a call
that failed has cached its plan, and is not helped by patching afterwards.
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
"""Their weights stay float32 in every dtype, as in the released files."""

_CONVOLUTIONS = ("aten::conv2d", "aten::_convolution", "aten::convolution")

ANEW = (
    "write it anew: clipcheck convert ARCHIVE --architecture ARCH -o fixed.pt, where ARCH is what "
    "it was trained as: a released name, open_clip:NAME, or a configuration file."
)
"""The end of a remedy for an archive of which the code cannot tell how it computes."""


def load_archive(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """The archive's module as it is, weights on ``device``, code not patched, in evaluation mode.

    This trusts the file: TorchScript has no safe mode.

    Raises:
        UnavailableError: this torch or Python has no TorchScript.
        DamagedError: the interpreter cannot load it.
    """
    torchscript_support.require()
    try:
        with torchscript_support.silenced():
            # By path: from an open file it takes several times as long.
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
    """Make the code of ``module`` run on ``device``, and compute in ``dtype``.

    A cast to a dtype that the weights are stored in belongs to these weights, and is rewritten with
    them. A cast to any other dtype is part of what the model computes: it stays, and is judged.

    Args:
        module: an archive that was not called yet. Its weights are not touched.
        device: replaces every device in the code.
        dtype: replaces the dtypes of the weights in the code; None leaves them.
        weights: see `clipcheck.checkpoints.checkpoint.Checkpoint.weight_dtypes`.

    Returns:
        The number of places that were rewritten, and of the casts that were not.
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
        str(device),
        None if new is None else _NAMES[new],
        tuple(weights),
        dict(devices),
        {_NAMES[number]: count for number, count in casts.items()},
        {_NAMES[number]: count for number, count in kept.items()},
    )


def _stays_float32(cast: Any, number: int) -> bool:
    """Whether a cast to float32 feeds normalisations alone, whose weights are float32.

    The code of a float32 archive does not tell these casts from those to the dtype of the model.
    """
    return number == SCALAR_TYPES[torch.float32] and all(
        use.user.kind() in _NORMALISATIONS and use.offset == 0 for use in cast.output().uses()
    )


def graphs(module: torch.jit.ScriptModule) -> Iterator[Any]:
    """The graph of every method of every submodule, each once: scripted modules of one class share
    theirs.

    The methods are those that each submodule says it has. Names alone do not tell: the second
    call of a module is ``forward1``, a third ``forward2``, and one that was never called itself,
    such as an attention's ``out_proj``, has none.
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
    """The nodes of ``graph`` that hold a device, those of nested blocks included."""
    constants = graph.findAllNodes("prim::Constant")
    return [node for node in constants if str(node.output().type()) == "Device"]


def float_casts(graph: Any) -> list[tuple[Any, int, int]]:
    """The nodes of ``graph`` that ask for a floating dtype, those of nested blocks included.

    Returns:
        Each node with the number of that input, and the number of the dtype in `SCALAR_TYPES`.
    """
    return [
        (use.user, use.offset, number)
        for constant in graph.findAllNodes("prim::Constant")
        if (number := _floating(constant)) is not None
        for use in constant.output().uses()
        if _is_dtype(use.user, use.offset)
    ]


def _replace_float(graph: Any, node: Any, index: int, new: int) -> None:
    """Give a cast a constant of its own, which says ``new``.

    Importing an archive pools equal constants of a graph: the number of half precision, 5, may be
    the very node that is a dimension somewhere else.
    """
    constant = graph.create("prim::Constant")
    constant.i_("value", new)
    constant.output().setType(torch._C.IntType.get())
    constant.insertBefore(node)
    node.replaceInput(index, constant.output())


def _floating(constant: Any) -> int | None:
    """The number in ``constant``, if it is that of a floating dtype."""
    if not constant.hasAttribute("value") or constant.kindOf("value") != "i":
        return None
    number: int = constant.i("value")
    return number if number in _NAMES else None


def _is_dtype(node: Any, index: int) -> bool:
    """Whether that input of an operator is a dtype; 5 may be anything else as well."""
    return node.kind().startswith("aten::") and index in _dtype_arguments(node.schema())


@cache
def _dtype_arguments(schema: str) -> frozenset[int]:
    """Which inputs are dtypes. It depends on the overload: `to` has several."""
    if schema == "(no schema)":
        return frozenset()
    arguments = torch._C.parse_schema(schema).arguments
    return frozenset(index for index, argument in enumerate(arguments) if argument.name == "dtype")


def used_weights(module: torch.jit.ScriptModule, method: str) -> set[str]:
    """The keys of the weights that take part in what a method of ``module`` gives.

    Read off the code: what a weight's values do there is not looked at.
    """
    graph = module._c._get_method(method).inlined_graph
    torch._C._jit_pass_dce(graph)
    return {
        _key(node)
        for node in graph.findAllNodes("prim::GetAttr")
        if node.output().type().kind() == "TensorType"
    }


def convolves_uncast(module: torch.jit.ScriptModule, method: str) -> bool:
    """Whether a method convolves its first input as it is given, and so takes it in the dtype of
    the weights alone."""
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
    """The number of tensors that a method takes, with those that may be None."""
    kinds = [str(argument.type) for argument in method.schema.arguments[1:]]
    return sum(kind in ("Tensor", "Optional[Tensor]") for kind in kinds)


def tensors_taken(method: Any) -> tuple[str, ...]:
    """The names of the tensors that a method is called with: up to two that may be left out
    count."""
    arguments = [each for each in method.schema.arguments[1:] if "Tensor" in str(each.type)]
    needed = sum(not each.has_default_value() for each in arguments)
    return tuple(each.name for each in arguments[: max(needed, min(2, len(arguments)))])


def _key(node: Any) -> str:
    """The name of an attribute, with those of the modules that it is in."""
    names: list[str] = []
    while node.kind() == "prim::GetAttr":
        names.insert(0, node.s("name"))
        node = node.inputsAt(0).node()
    return ".".join(names)
