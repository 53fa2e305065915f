"""Compare the text encoder of Stable Diffusion, run by ONNX Runtime, with transformers' own.

    python examples/text_encoder.py stable-diffusion-v1-5/text_encoder

The folder is one of transformers' CLIPTextModel. Needs clipcheck[onnx,transformers].
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import CLIPTextModel

import clipcheck


class Pooled(torch.nn.Module):
    """The encoder's pooled output alone."""

    def __init__(self, model: CLIPTextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Ids [M, L] to features [M, E]."""
        pooled: torch.Tensor = self.model(input_ids=input_ids).pooler_output
        return pooled


def compare(folder: str) -> clipcheck.Result:
    """Export a text encoder to ONNX, and compare ONNX Runtime with the model."""
    model = CLIPTextModel.from_pretrained(folder).eval()
    length = model.config.max_position_embeddings
    ids = torch.zeros(2, length, dtype=torch.int64)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "text.onnx")
        sizes = {"input_ids": {0: torch.export.Dim("rows")}}
        torch.onnx.export(
            Pooled(model).eval(),
            (ids,),
            path,
            dynamo=True,
            dynamic_shapes=sizes,
            external_data=False,
        )
        session = onnxruntime.InferenceSession(path.read_bytes())

    def encode_text(rows: NDArray[np.int32]) -> NDArray[Any]:
        (found,) = session.run(None, {"input_ids": rows.astype(np.int64)})
        array: NDArray[Any] = found
        return array

    return clipcheck.compare(model, (None, encode_text))


if __name__ == "__main__":
    result = compare(sys.argv[1])
    print(result)
    sys.exit(result.exit_code)
