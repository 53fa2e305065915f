"""Export the eager model in other ways than `clipcheck.writers.programs`."""

from __future__ import annotations

from pathlib import Path

import torch

from clipcheck.families import eager
from clipcheck.gates.result import OUTPUTS
from clipcheck.models.whole import Whole
from clipcheck.writers.programs import INPUTS, export, write_pt2


def write_rounded(model: eager.CLIP, path: Path) -> None:
    """Export with all weights rounded through float16."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    write_pt2(model, path)


def write_of_fixed_rows(model: eager.CLIP, path: Path) -> None:
    """Export with fixed batch sizes: the example's two images and three texts."""
    side = model.visual.input_resolution
    example = (torch.zeros(2, 3, side, side), torch.zeros(3, model.context_length).int())
    with torch.inference_mode(False), torch.no_grad():
        torch.export.save(torch.export.export(Whole(model), example, strict=False), path)


def write_unfolded(model: eager.CLIP, path: Path) -> None:
    """Export to ONNX without folding constants."""
    import onnx

    written = torch.onnx.export(
        export(model),
        dynamo=True,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        verbose=False,
        optimize=False,
    )
    if written is None:
        raise TypeError("expected a program of torch.onnx.export, found None")
    onnx.save(written.model_proto, path)
