"""The modules of a library's model and their float64 copies."""

from __future__ import annotations

import torch

from clipcheck.audit.small import small
from clipcheck.backends.reference import Reference
from clipcheck.families.model_inputs import inputs_of
from clipcheck.harness.modules.library import LibraryTwins
from clipcheck.inputs.batches import for_modules
from tests.families.conformance import built

CPU = torch.device("cpu")

MODULE = "visual.transformer.resblocks.0.mlp.c_fc"


def test_only_an_output_that_differs_from_the_eager_model_s_needs_float64() -> None:
    architecture = small("clipa")
    model, batch = built(architecture), for_modules(inputs_of(architecture), 0)
    reference = Reference(model, architecture, CPU)
    trusting = LibraryTwins(model, reference, batch, CPU, trusting=True)
    measuring = LibraryTwins(model, reference, batch, CPU)
    given = torch.rand(2, 5, 64)
    same = model.own().get_submodule(MODULE)(given)
    other = same.nextafter(torch.tensor(0.0))
    for twins, output, dtype in (
        (trusting, same, torch.float32),
        (trusting, other, torch.float64),
        (measuring, same, torch.float64),
    ):
        (found,) = twins.expected(MODULE, [given], [output])
        (pair,) = found.outputs
        assert torch.equal(pair.own, same)
        assert pair.exact.dtype == dtype
