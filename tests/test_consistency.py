"""The promise: an archive and the eager model of its weights compute the same.

``--clip-model`` and ``--clip-device`` choose what is checked. Released names stand for the
released files where they are in the cache, and for seeded weights elsewhere; the summary of the
run tells which.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from clipcheck.backends.base import Array, outputs
from clipcheck.compare.gates import LOGITS, OUTPUTS
from clipcheck.compare.metrics import softmax
from clipcheck.inputs.batches import Batch, batches
from clipcheck.suite import Subject

EXAMPLES = 4


@pytest.fixture(scope="session")
def batch(clip_subject: Subject) -> Batch:
    a = clip_subject.checkpoint.architecture
    drawn = batches(
        EXAMPLES,
        resolution=a.image_resolution,
        context_length=a.context_length,
        vocab_size=a.vocab_size,
        seed=0,
    )
    return next(iter(drawn))


@pytest.fixture(scope="session")
def both_outputs(clip_subject: Subject, batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    return (
        outputs(clip_subject.candidate, batch.pixels, batch.tokens),
        outputs(clip_subject.reference, batch.pixels, batch.tokens),
    )


@pytest.fixture(autouse=True)
def _record_source(clip_subject: Subject, record_property: Callable[[str, object], None]) -> None:
    record_property("clip", clip_subject.source)


def test_both_sides_are_what_they_should_be(clip_subject: Subject) -> None:
    import torch

    assert isinstance(clip_subject.candidate._module, torch.jit.ScriptModule)
    assert not isinstance(clip_subject.reference._module, torch.jit.ScriptModule)


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_is_there_finite_and_of_the_same_shape_and_dtype(
    both_outputs: tuple[dict[str, Array], dict[str, Array]], name: str
) -> None:
    jit, eager = (outputs[name] for outputs in both_outputs)
    assert jit.shape == eager.shape
    assert jit.dtype == eager.dtype
    assert jit.size > 0
    assert np.isfinite(jit).all()
    assert np.isfinite(eager).all()


@pytest.mark.parametrize("name", LOGITS)
def test_the_probabilities_are_close_both_ways(
    both_outputs: tuple[dict[str, Array], dict[str, Array]],
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    jit, eager = (softmax(outputs[name]) for outputs in both_outputs)
    atol = request.config.getoption("--clip-atol")
    rtol = request.config.getoption("--clip-rtol")
    assert np.allclose(jit, eager, atol=atol, rtol=rtol), (
        f"{name} differs by up to {np.abs(jit - eager).max():.3g}"
    )
