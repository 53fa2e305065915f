"""Programs that others made: of their names, their order of inputs, and parts of their outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from clipcheck.backends import onnxruntime as onnx_way
from clipcheck.backends.artefact_files import open_file
from clipcheck.backends.base import Backend, Missing
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.compare.integrity import integrity
from clipcheck.compare.result import OUTPUTS, Case
from clipcheck.errors import (
    ArchitectureError,
    CheckpointError,
    RunError,
    UnavailableError,
    UnknownFormatError,
    UnsafeError,
)
from clipcheck.models import eager
from clipcheck.writers.programs import write_onnx, write_pt2
from clipcheck.writers.synthesize import architecture_named, synthesize
from tests.backends.kept import CPU, assert_near, batch, expected
from tests.samples import MINUTE, minute_weights


@pytest.fixture(scope="module")
def model() -> eager.CLIP:
    return eager.build(MINUTE, {key: tensor.float() for key, tensor in minute_weights().items()})


class TheirForward(nn.Module):
    """The eager model in another's clothes; subclasses have their forward."""

    def __init__(self, model: eager.CLIP) -> None:
        super().__init__()
        self.clip = model

    def both(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image, text = self.clip.encode_image(pixels), self.clip.encode_text(ids)
        return (*self.clip.logits(image, text), image, text)


class LikeTransformers(TheirForward):
    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        per_image, per_text, image, text = self.both(pixel_values, input_ids)
        text = text + 0 * attention_mask.sum()
        image, text = (each / each.norm(dim=-1, keepdim=True) for each in (image, text))
        return per_image, per_text, text, image


class LogitsAlone(TheirForward):
    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.both(image, text)[:2]


class FeaturesAlone(TheirForward):
    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.both(image, text)[2:]


class Twice(TheirForward):
    """Gives two things of the shape of image features."""

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        found = self.both(image, text)
        return (*found, 2 * found[2])


class ImageAlone(TheirForward):
    def forward(self, image: Tensor) -> Tensor:
        return self.clip.encode_image(image)


class More(TheirForward):
    def forward(self, image: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
        return self.both(image, text)[0] * temperature


def inputs(architecture: Architecture, dtype: torch.dtype) -> dict[str, Tensor]:
    side = architecture.image_resolution
    pixels = torch.zeros(2, 3, side, side)
    ids = torch.zeros(3, architecture.context_length, dtype=dtype)
    return {
        "image": pixels,
        "pixel_values": pixels,
        "text": ids,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "temperature": torch.ones(1),
    }


def exported(module: nn.Module, names: list[str], dtype: torch.dtype = torch.int64) -> Any:
    rows = {"temperature": None}
    example = {name: inputs(MINUTE, dtype)[name] for name in names}
    sizes = {
        name: rows.get(name, {0: torch.export.Dim("images" if "i" == name[0] and "image" in name
                                                  or "pixel" in name else "texts", min=1)})
        for name in names
    }
    with torch.no_grad():
        return torch.export.export(
            module.eval(), (), example, dynamic_shapes=sizes, strict=False
        )
