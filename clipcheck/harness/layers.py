"""Which layers of a lossy program cost most: each is run in float in turn, and all others as they
are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipcheck.backends.programs import ProgramBackend
from clipcheck.gates.budget import LayerCost, squared_error
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import Case
from clipcheck.system.progress import Advance, still

if TYPE_CHECKING:
    import torch

    from clipcheck.harness.judging import Trial

_BATCHES = 4
"""Batches of the population that each layer is run on."""


def costly_layers(
    candidate: ProgramBackend,
    evidence: Evidence,
    weights: Mapping[str, torch.Tensor],
    trial: Trial,
    advance: Advance = still,
) -> tuple[LayerCost, ...]:
    """Measure what each quantised weight adds to the error, the most first.

    Args:
        candidate: a program; it runs as it is again in the end.
        evidence: which weights it has quantised, and under which names.
        weights: the reference's.
        trial: with a population.
        advance: told the share of the layers that is done.

    Raises:
        RunError: the program does not run with one of them in float.
    """
    whole = _error(candidate, trial)
    found = []
    for number, (key, name) in enumerate(evidence.tensors.items(), start=1):
        with candidate.in_float(name, weights[key]):
            left = _error(candidate, trial)
        how = evidence.quantised.get(key, "otherwise than the file")
        found.append(LayerCost(key, how, (whole - left) / whole if whole else 0.0, left))
        advance(number / len(evidence.tensors))
    return tuple(sorted(found, key=lambda each: -each.share))


def _error(candidate: ProgramBackend, trial: Trial) -> float:
    return squared_error(
        [
            Case(
                candidate.outputs(batch.pixels, batch.tokens),
                exact,
                exact,
                absent=candidate.absent,
            )
            for batch, exact in zip(trial.population[:_BATCHES], trial.of_population, strict=False)
        ]
    )
