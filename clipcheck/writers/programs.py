"""Write a model as one program for torch.export or ONNX, for any batch sizes.

The inputs are ``pixels`` [N, 3, R, R], float32, and ``tokens`` [M, L], int32, with N and M at least
1; the outputs are the four of `clipcheck.models.whole.Whole`, by name.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.keys import specs
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
"""Version of the writer: cached programs of other versions are not used."""

_ROWS = (2, 3)
"""Images and texts of the example for the export. Sizes that are 1 or equal would become fixed."""

_MOST = 2**31 - 1
"""Most bytes of a protobuf file such as an ONNX program (protobuf.dev, encoding)."""


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
        checkpoint: first its checksums and weights are checked.
        path: the file to write; replaced only after success.
        dtype: in which the program computes; default: float32.
        judge: called with the written file before it gets its name; if it raises, the file is
            deleted.

    Raises:
        DamagedError, NotFiniteError: the checkpoint is damaged or has weights that are not finite.
        OutputError: the program cannot be exported or written.
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
        # Exporters raise nearly any exception.
        except Exception as error:
            raise OutputError(
                f"cannot be exported ({first_line(error)})",
                remedy="Run it again with --debug to see the whole message, or choose another "
                "format.",
                path=path,
            ) from error
        del model
        if judge is not None:
            judge(temporary)


def export(model: DualEncoder, *, checked: bool = True, most: int | None = None) -> ExportedProgram:
    """Return the program of a model, with the model's own weights.

    It does not have the source paths of its operations on this machine.

    Args:
        model: in evaluation mode, on any device.
        checked: with the checks of inputs that some models of transformers have. ONNX cannot
            represent them.
        most: most images and most texts; default: any number.
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
    sizes = {
        "pixels": {0: Dim("images", min=1, max=most)},
        "tokens": {0: Dim("texts", min=1, max=most)},
    }
    switch = {} if checked else {"TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}
    with torch.no_grad(), variables(switch):
        program = torch.export.export(Whole(model), example, dynamic_shapes=sizes, strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes:
            node.meta.pop("stack_trace", None)
    return program


def write_pt2(model: DualEncoder, path: Path, program: ExportedProgram | None = None) -> None:
    """Export a model and write it for `torch.export.load`.

    Args:
        model: in evaluation mode, on any device.
        path: the file; overwritten.
        program: of the model, if it is exported already.
    """
    import torch

    with of_any_name():
        torch.export.save(program or export(model), path)


def of_any_name() -> AbstractContextManager[None]:
    """Hide torch's warnings of file names that do not end in ``.pt2``."""
    return without_record("torch.export.pt2_archive._package", "ending in .pt2")


@contextmanager
def without_record(name: str, text: str) -> Iterator[None]:
    """Hide the messages of a logger that contain a text."""

    def other(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logger = logging.getLogger(name)
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def write_onnx(model: DualEncoder, path: Path, program: ExportedProgram | None = None) -> None:
    """Export a model to ONNX, in one file.

    Constants are folded, as torch does by default, except in a ResNet in half precision: a weight
    may have another layout, or be folded into another.

    Args:
        model: in evaluation mode, on any device.
        path: the file; overwritten.
        program: of the model, without checks of inputs, if it is exported already.

    Raises:
        OutputError: the weights are too large for an ONNX file.
    """
    import onnx
    import torch

    problem = _too_large(sum(tensor.nbytes for tensor in model.state_dict().values()))
    if problem is not None:
        raise OutputError(
            problem, remedy="Write it in half precision, or as another format.", path=path
        )
    with without_record("onnxscript.optimizer._constant_folding", "Skipping constant folding"):
        written = torch.onnx.export(
            program or export(model, checked=False),
            dynamo=True,
            input_names=list(INPUTS),
            output_names=list(model.outputs),
            verbose=False,
            optimize=not _is_half_resnet(model),
        )
    if written is None:
        raise TypeError("torch.onnx.export gave nothing, expected a program")
    # onnx's own `save` writes two files for more than 1.5 GiB.
    onnx.save(written.model_proto, path)


def _is_half_resnet(model: DualEncoder) -> bool:
    """Whether folding constants would break the program.

    onnxscript (0.7.2) folds a float32 BatchNorm into the half convolution before it, and leaves the
    result in float32: the program is invalid.
    """
    import torch

    from clipcheck.families import eager

    if not isinstance(model, eager.CLIP):
        return False
    return isinstance(model.visual, eager.ModifiedResNet) and model.dtype != torch.float32


def too_large_for_onnx(checkpoint: Checkpoint, dtype: str) -> str | None:
    """Return why a model in ``dtype`` does not fit into one ONNX file, or None."""
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
