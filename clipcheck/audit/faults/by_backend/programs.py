"""Export the eager model in other ways than `clipcheck.writers.programs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from clipcheck.audit.faults.planting import put
from clipcheck.audit.faults.variant import PlantSource
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.families import eager
from clipcheck.families.base import DualEncoder
from clipcheck.gates.result import OUTPUTS
from clipcheck.models.whole import Whole
from clipcheck.writers.archive import filled
from clipcheck.writers.legacy import Multimodal
from clipcheck.writers.programs import INPUTS, export, write_pt2


class OfArchive(DualEncoder):
    """The modules that archives are traced from, to plant the same faults into programs."""

    def __init__(self, model: Multimodal, architecture: Architecture) -> None:
        super().__init__(architecture.image_resolution, architecture.context_length)
        self.clip = model

    def own(self) -> Multimodal:
        """Return the modules that have the names of the eager model's."""
        return self.clip

    def encode_image(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, E]."""
        return self.clip.encode_image(image)

    def encode_text(self, text: Tensor) -> Tensor:
        """[M, L] to [M, E]."""
        return self.clip.encode_text(text)

    def logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits [N, M] and [M, N] from features [N, E] and [M, E], by the end of
        ``forward``, which may be altered."""
        features = {"encode_image": image_features, "encode_text": text_features}
        own = {name: vars(self.clip).get(name) for name in features}
        for name, found in features.items():
            put(self.clip, name, lambda _, found=found: found)
        try:
            per_image, per_text = self.clip(image_features, text_features)
        finally:
            for name, function in own.items():
                delattr(self.clip, name)
                if function is not None:
                    put(self.clip, name, function)
        return per_image, per_text


def of_archive(alter: Callable[[Multimodal], None]) -> PlantSource:
    """Export the modules that archives are traced from, altered."""

    @contextmanager
    def plant(source: Source) -> Iterator[Source]:
        architecture = source.checkpoint.architecture
        model = filled(architecture, source.model.state_dict())
        alter(model)
        altered = OfArchive(model, architecture).eval()
        yield replace(source, model=altered, artefacts=Artefacts(None, source.scratch))

    return plant


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
