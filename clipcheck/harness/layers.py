"""Which layers of a lossy program cost most: each is run in float in turn, and all others as they
are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipcheck.backends.programs import ProgramBackend
from clipcheck.errors import RunError
from clipcheck.gates.budget import LayerCost, squared_error
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import Case, in_form
from clipcheck.system.progress import Advance, still

if TYPE_CHECKING:
    import torch

    from clipcheck.harness.judging import Trial


def costly_layers(
    candidate: ProgramBackend,
    evidence: Evidence,
    weights: Mapping[str, torch.Tensor],
    trial: Trial,
    batches: int,
    advance: Advance = still,
) -> tuple[tuple[LayerCost, ...], str | None]:
    """Measure what each quantised weight adds to the error, the most first; and tell why that could
    not be done of some.

    Args:
        candidate: a program; it runs as it is again in the end.
        evidence: which weights it has quantised, and under which names.
        weights: the reference's.
        trial: with a population.
        batches: how many of the population each is run on.
        advance: told the share of the layers that is done.

    Raises:
        RunError: the program does not run.
    """
    whole = _error(candidate, trial, batches)
    found: list[LayerCost] = []
    problem = None
    for number, (key, name) in enumerate(evidence.tensors.items(), start=1):
        try:
            with candidate.in_float(name, weights[key]):
                left = _error(candidate, trial, batches)
        except RunError as error:
            problem = problem or f"{key}: {error.problem}"
            continue
        how = evidence.quantised.get(key, "otherwise than the file")
        found.append(LayerCost(key, how, (whole - left) / whole if whole else 0.0, left))
        advance(number / len(evidence.tensors))
    return tuple(sorted(found, key=lambda each: -each.share)), problem


def _error(candidate: ProgramBackend, trial: Trial, batches: int) -> float:
    return squared_error(
        [
            Case(
                candidate.outputs(batch.pixels, batch.tokens),
                in_form(exact, candidate.normalised),
                in_form(exact, candidate.normalised),
                absent=candidate.absent,
            )
            for batch, exact in zip(trial.population[:batches], trial.of_population, strict=False)
        ]
    )
