"""Helpers for the tests of backends that use other libraries' CLIP models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Named
from clipcheck.backends.reference import Reference, exact_arithmetic
from clipcheck.backends.source import Source
from clipcheck.checkpoints.checkpoint import Checkpoint
from clipcheck.checkpoints.keys import specs
from clipcheck.families import eager
from clipcheck.inputs.batches import Inputs, batches

CPU = torch.device("cpu")
Pair = tuple[np.ndarray, np.ndarray]


def source_of(
    checkpoint: Checkpoint, scratch: Path, dtype: str = "float32", **options: str
) -> Source:
    """Return the checkpoint as a source, with the eager model of its weights in that dtype."""
    released = {key: spec.released_dtype for key, spec in specs(checkpoint.architecture)}
    wanted = getattr(torch, dtype)
    weights = {
        key: t.to(wanted if released[key] == "float16" else torch.float32)
        if t.is_floating_point()
        else t
        for key, t in checkpoint.tensors.items()
    }
    model = eager.build(checkpoint.architecture, weights)
    return Source(
        checkpoint=checkpoint,
        model=model,
        device=CPU,
        dtype=dtype,
        options=options,
        scratch=scratch,
        artefacts=Artefacts(None, scratch),
    )


def pairs(checkpoint: Checkpoint, examples: int = 5) -> list[Pair]:
    """Yield batches of several rows and of one, drawn from all kinds of inputs."""
    a = checkpoint.architecture
    drawn = batches(
        examples,
        Inputs(
            resolution=a.image_resolution,
            context_length=a.context_length,
            vocab_size=a.vocab_size,
            grid=a.grid,
        ),
        0,
    )
    found = [(batch.pixels, batch.tokens) for batch in drawn]
    pixels, tokens = found[0]
    return [*found, (pixels[:1], tokens[:1]), (pixels[:2], tokens[:1]), (pixels[:1], tokens)]


def run(backend: Backend, pair: Pair) -> Named:
    with exact_arithmetic():
        return backend.outputs(*pair)


def ratios(source: Source, backend: Backend, batch: list[Pair]) -> list[float]:
    """Return errors vs float64 by output and batch, in units of the eager model's error."""
    a = source.checkpoint.architecture
    reference = Reference(source.model, a, CPU)
    found = []
    for pair, own, exact in zip(
        batch, reference.outputs(batch), reference.exact_outputs(batch), strict=True
    ):
        outputs = run(backend, pair)
        assert list(outputs) == list(own)
        for name, values in outputs.items():
            assert (values.shape, values.dtype) == (own[name].shape, own[name].dtype), name
            floor = 1e-6 * np.abs(exact[name]).max()
            found.append(_rmse(values, exact[name]) / max(_rmse(own[name], exact[name]), floor))
    return found


def _rmse(values: Any, exact: Any) -> float:
    return float(np.sqrt(np.square(values.astype(np.float64) - exact).mean()))


def assert_fits(backend: type[Backend]) -> None:
    """The backend describes itself, and can run here."""
    assert backend.summary
    for variant in backend.variants:
        assert variant.keys() <= backend.options.keys()
        for key, value in variant.items():
            assert value in backend.options[key].values
    assert backend.available() is None
    assert backend.version()
