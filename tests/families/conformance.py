"""Requirements of every family whose library's own model is the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipcheck.backends.reference import Reference
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.base import DualEncoder
from clipcheck.families.model_inputs import inputs_of
from clipcheck.families.registry import over
from clipcheck.inputs.batches import batches
from clipcheck.writers.library import draw


def built(architecture: LibraryArchitecture, dtype: torch.dtype = torch.float32) -> DualEncoder:
    """The eager model with seeded weights."""
    tensors = draw(architecture)
    cast = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
    return over(architecture, cast)


def inputs(architecture: LibraryArchitecture) -> list[tuple[Any, Any]]:
    """Pixels and ids of three batches."""
    drawn = batches(30, inputs_of(architecture), 0)
    return [(batch.pixels, batch.tokens) for batch in drawn][:3]


class _Lowered(TorchDispatchMode):
    """Collects the operations that lower float64 to another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        exact = any(isinstance(each, Tensor) and each.dtype == torch.float64 for each in args)
        if exact and isinstance(out, Tensor) and out.dtype in (torch.float32, torch.float16):
            self.found.append(str(func))
        return out


def require_float64(architecture: LibraryArchitecture) -> DualEncoder:
    """The float64 twin computes both towers and the logits in float64 throughout."""
    twin = built(architecture, torch.float64)
    (pixels, tokens), *_ = inputs(architecture)
    lowered = _Lowered()
    with torch.no_grad(), lowered:
        images = twin.encode_image(torch.from_numpy(pixels))
        texts = twin.encode_text(torch.from_numpy(tokens))
        logits, _ = twin.logits(images, texts)
    assert lowered.found == []
    assert {each.dtype for each in (images, texts, logits)} == {torch.float64}
    return twin


def require_near(architecture: LibraryArchitecture) -> None:
    """The eager model is as close to its twin as float32 allows, and is not the twin."""
    reference = Reference(built(architecture), architecture, torch.device("cpu"))
    given = inputs(architecture)
    own, exact = reference.outputs(given), reference.exact_outputs(given)
    for mine, theirs in zip(own, exact, strict=True):
        for name, array in mine.items():
            assert theirs[name].dtype == np.float64
            off = np.abs(array - theirs[name]).max() / np.abs(theirs[name]).max()
            assert 0 < off < 1e-4, name
