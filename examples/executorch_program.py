"""Judge a checkpoint as a program of ExecuTorch, by its portable kernels or XNNPACK.

    clipcheck check model.pt --backend examples.executorch_program:portable
    clipcheck check model.pt --backend examples.executorch_program:xnnpack

Needs executorch (1.5.1 works with torch 2.14.1). Lowering takes longer than the check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from numpy.typing import NDArray
from torch import Tensor, nn

import clipcheck

MOST = 64
"""Most rows of a batch: ExecuTorch plans its memory ahead."""

Encode = Callable[[NDArray[Any]], NDArray[Any]]


class Encoder(nn.Module):
    """One tower as a module."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, rows: Tensor) -> Tensor:
        """Pixels or ids to features."""
        features: Tensor = getattr(self.model, self.method)(rows)
        return features


def lowered(model: nn.Module, method: str, example: Tensor, partitioners: list[Any]) -> Encode:
    """Lower a tower for any number of rows up to `MOST`, and return a function that runs it."""
    sizes = {"rows": {0: torch.export.Dim("n", min=1, max=MOST)}}
    module = Encoder(model, method).eval()
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=sizes, strict=False)
    written = to_edge_transform_and_lower(program, partitioner=partitioners).to_executorch()
    loaded = Runtime.get().load_program(written.buffer)
    forward = loaded.load_method("forward")

    def encode(rows: NDArray[Any]) -> NDArray[Any]:
        (features,) = forward.execute([torch.from_numpy(rows)])
        # Copied: the next call writes over it.
        return np.array(features)

    return encode


def lower(path: str, partitioners: list[Any]) -> tuple[Encode, Encode]:
    """Lower both towers of a checkpoint."""
    model, _ = clipcheck.load(path, device="cpu", jit=False)
    model.float()
    side, length = model.image_resolution, model.context_length
    return (
        lowered(model, "encode_image", torch.zeros(2, 3, side, side), partitioners),
        lowered(model, "encode_text", torch.zeros(2, length, dtype=torch.int32), partitioners),
    )


def portable(path: str) -> tuple[Encode, Encode]:
    """Lower to the portable kernels."""
    return lower(path, [])


def xnnpack(path: str) -> tuple[Encode, Encode]:
    """Lower to XNNPACK where it has the operators."""
    return lower(path, [XnnpackPartitioner()])
