"""Open a program that somebody else made, as a backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.backends import aotinductor, export, onnxruntime
from clipcheck.backends.base import Backend
from clipcheck.checkpoints.artefacts import is_compiled, kind_of
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import UnavailableError, UnknownFormatError, UnsafeError

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.architecture import Architecture
    from clipcheck.isolation.cell import Cell


def open_file(
    path: Path,
    device: torch.device,
    architecture: Architecture,
    *,
    weights: Mapping[str, torch.Tensor] | None = None,
    options: Mapping[str, str] | None = None,
    native: bool = False,
    cell: Cell | None = None,
    dtype: str | None = None,
) -> Backend:
    """Open a ``pt2`` or ``onnx`` file.

    It computes in the dtype that it was written in. Of exported programs and of ONNX nothing runs
    but operators of torch and ONNX Runtime; a compiled package is native code, which runs with all
    rights of the process as soon as it is loaded.

    Args:
        path: the file.
        device: where to run it.
        architecture: what it is to be a model of.
        weights: those that it has to have, by the released keys, of the dtypes that it computes
            in; where they can be told, they are compared.
        options: of the backend ``onnxruntime``, for an ONNX file.
        native: whether a compiled package may be loaded into this process.
        cell: what runs it; None for this process.
        dtype: what it computes in, where that is known.

    Returns:
        A backend, whose missing outputs are told by the gate ``integrity``.

    Raises:
        CheckpointError: the file cannot be used; the subclass tells why.
        UnavailableError: what runs it is not installed.
        RunError: what runs it cannot load it.
    """
    kind = kind_of(path)
    if kind is Format.ONNX:
        missing = onnxruntime.available()
        if missing is not None:
            raise UnavailableError(f"onnxruntime: {missing.reason}", remedy=missing.remedy)
        return onnxruntime.open_program(
            path, device, architecture, weights, options, cell, dtype=dtype
        )
    if kind is not Format.PT2:
        raise UnknownFormatError(
            "expected a program, as torch.export.save, AOTInductor or an ONNX exporter writes it",
            remedy="Give a .pt2 or .onnx file.",
            path=path,
        )
    if not is_compiled(path):
        return export.open_program(path, device, architecture, weights, cell, dtype=dtype)
    if cell is None and not native:
        raise UnsafeError(
            "it is native code, which runs as soon as it is loaded; nothing was run",
            remedy="Leave out --isolation none: a process without rights runs it.",
            path=path,
        )
    return aotinductor.open_package(path, device, architecture, cell)
