"""Judge TensorRT engines of both towers.

    clipcheck check model.pt --backend examples.tensorrt_engine:open_beside

Expects the engines beside the checkpoint: model.image.plan takes pixels [N, 3, R, R] and
model.text.plan takes ids [M, L], with any N and M up to the greatest that they were built for.

Written for TensorRT 10. It was run against a fake of TensorRT's interface, not against TensorRT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorrt
import torch
from numpy.typing import NDArray

DEVICE = "cuda"


class Engine:
    """A TensorRT engine with one input, as a function on arrays."""

    def __init__(self, path: Path) -> None:
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
        self._engine = runtime.deserialize_cuda_engine(path.read_bytes())
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(n) for n in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._given = next(n for n in names if modes[n] == tensorrt.TensorIOMode.INPUT)
        self._found = next(n for n in names if modes[n] == tensorrt.TensorIOMode.OUTPUT)

    def __call__(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the features [N, E] of rows."""
        dtype = np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(self._given)))
        given = torch.from_numpy(rows.astype(dtype)).to(DEVICE)
        self._context.set_input_shape(self._given, tuple(given.shape))
        shape = tuple(self._context.get_tensor_shape(self._found))
        kind = np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(self._found)))
        found = torch.from_numpy(np.empty(shape, kind)).to(DEVICE)
        self._context.set_tensor_address(self._given, given.data_ptr())
        self._context.set_tensor_address(self._found, found.data_ptr())
        stream = torch.cuda.current_stream() if DEVICE == "cuda" else None
        if not self._context.execute_async_v3(stream.cuda_stream if stream else 0):
            raise RuntimeError("TensorRT could not run the engine")
        if stream:
            stream.synchronize()
        array: NDArray[Any] = found.cpu().numpy()
        return array


def open_beside(checkpoint: str) -> tuple[Engine, Engine]:
    """Open the engines beside a checkpoint: `encode_image` and `encode_text`."""
    path = Path(checkpoint)
    return Engine(path.with_suffix(".image.plan")), Engine(path.with_suffix(".text.plan"))
