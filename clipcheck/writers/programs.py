"""Write a model as one program that torch.export or ONNX runs, of any batch sizes.

The program takes ``pixels`` [N, 3, R, R], float32, and ``tokens`` [M, L], int32, N and M each from
1 on, and gives the four outputs of `clipcheck.models.whole.Whole` by their names.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.checkpoints.architecture import specs
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import ClipcheckError, OutputError, first_line
from clipcheck.system.variables import variables
from clipcheck.writers.convert import Judge
from clipcheck.writers.output import replacing

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families.base import DualEncoder

INPUTS = ("pixels", "tokens")

PROGRAM = "1"
"""Counts what changes in how programs are written: those of another number are not used again."""

_ROWS = (2, 3)
"""Images and texts of the example that is exported: neither 1 nor equal, which would say that they
always are."""

_MOST = 2**31 - 1
"""Bytes that a protobuf file, as an ONNX program is one, can have (protobuf.dev, encoding)."""


def convert_to_program(
    checkpoint: Checkpoint,
    path: Path,
    form: Format,
    *,
    dtype: torch.dtype | None = None,
    judge: Judge | None = None,
) -> None:
    """Write the program of a checkpoint's eager model.

    Args:
        checkpoint: its checksums are compared and its weights looked through first.
        path: the file to write; it is replaced when all has succeeded.
        dtype: what the program computes in; by default float32.
        judge: called with the path of the written file before it gets its name; what it raises
            keeps the file from being kept.

    Raises:
        DamagedError, NotFiniteError: the checkpoint is not sound.
        OutputError: the program cannot be made or written.
    """
    import torch

    from clipcheck.models.loader import load_eager

    checkpoint.verify()
    write = {Format.PT2: write_pt2, Format.ONNX: write_onnx}[form]
    model = load_eager(checkpoint, torch.device("cpu"), dtype or torch.float32)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    with replacing(path, room=size) as temporary:
        try:
            write(model, temporary)
        except (ClipcheckError, OSError):
            raise
        # Exporters raise nearly anything.
        except Exception as error:
            raise OutputError(
                f"cannot be exported ({first_line(error)})",
                remedy="Run it again with --debug to see all of the message, or choose another "
                "format.",
                path=path,
            ) from error
        del model
        if judge is not None:
            judge(temporary)


def export(model: DualEncoder) -> ExportedProgram:
    """The program of a model, over the model's own weights.

    Where the source of each operation stood, on the machine that exports, is not in it.

    Args:
        model: in evaluation mode, on any device.
    """
    import torch
    from torch.export import Dim

    from clipcheck.models.whole import Whole

    side, device = model.image_resolution, next(model.parameters()).device
    images, texts = _ROWS
    example = (
        torch.zeros(images, 3, side, side, device=device),
        torch.zeros(texts, model.context_length, dtype=torch.int32, device=device),
    )
    sizes = {"pixels": {0: Dim("images", min=1)}, "tokens": {0: Dim("texts", min=1)}}
    with torch.no_grad():
        program = torch.export.export(Whole(model), example, dynamic_shapes=sizes, strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes:
            node.meta.pop("stack_trace", None)
    return program


def write_pt2(model: DualEncoder, path: Path) -> None:
    """Export a model and write it as `torch.export.load` reads it.

    Args:
        model: in evaluation mode, on any device.
        path: the file; it is written over.
    """
    import torch

    with of_any_name():
        torch.export.save(export(model), path)


def of_any_name() -> AbstractContextManager[None]:
    """Without torch's warnings of files whose names do not end in ``.pt2``: what they are is told
    by their contents."""
    return without_record("torch.export.pt2_archive._package", "ending in .pt2")


@contextmanager
def without_record(name: str, text: str) -> Iterator[None]:
    """Without what a logger says with this text in it."""

    def other(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logger = logging.getLogger(name)
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def write_onnx(model: DualEncoder, path: Path) -> None:
    """Export a model to ONNX, in one file.

    Constants are folded, as torch does where it is not told otherwise: a weight may be there in
    another layout, or be part of another. Not so in a ResNet in half precision.

    Args:
        model: in evaluation mode, on any device.
        path: the file; it is written over.

    Raises:
        OutputError: the weights are more than one ONNX file can hold.
    """
    import onnx
    import torch

    problem = _too_large(sum(tensor.nbytes for tensor in model.state_dict().values()))
    if problem is not None:
        raise OutputError(
            problem, remedy="Write it in half precision, or as another format.", path=path
        )
    # Some of its models check their inputs, which ONNX cannot hold.
    with variables({"TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}):
        program = export(model)
    with without_record("onnxscript.optimizer._constant_folding", "Skipping constant folding"):
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(INPUTS),
            output_names=list(model.outputs),
            verbose=False,
            optimize=not _is_half_resnet(model),
        )
    if written is None:
        raise TypeError("torch.onnx.export gave nothing, expected a program")
    # Not its own `save`, which makes two files of what has more than 1.5 GiB.
    onnx.save(written.model_proto, path)


def _is_half_resnet(model: DualEncoder) -> bool:
    """Whether folding would spoil the program.

    onnxscript (0.7.2) folds a BatchNorm in float32 into the half convolution before it and leaves
    the result in float32, which makes a program that is not valid.
    """
    import torch

    from clipcheck.families import eager

    if not isinstance(model, eager.CLIP):
        return False
    return isinstance(model.visual, eager.ModifiedResNet) and model.dtype != torch.float32


def too_large_for_onnx(checkpoint: Checkpoint, dtype: str) -> str | None:
    """Why a model that computes in ``dtype`` does not go into one ONNX file, or None."""
    bytes_each = {"float16": 2, "bfloat16": 2}.get(dtype, 4)
    if isinstance(checkpoint.model, LibraryArchitecture):
        return _too_large(bytes_each * checkpoint.parameters)
    return _too_large(
        sum(
            math.prod(spec.shape) * (bytes_each if spec.released_dtype == "float16" else 4)
            for _, spec in specs(checkpoint.model)
        )
    )


def _too_large(size: int) -> str | None:
    if size <= _MOST:
        return None
    return f"its weights are {size / 1e9:.1f} GB, and one ONNX file holds {_MOST / 1e9:.1f} GB"
