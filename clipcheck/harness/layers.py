"""Find the layers of a lossy program that add most to its error, by running each alone in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend
from clipcheck.errors import RunError
from clipcheck.gates.budget import LayerCost, squared_error
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import Case, in_form
from clipcheck.system.progress import Advance, still

if TYPE_CHECKING:
    import torch

    from clipcheck.harness.judging import Trial


def costly_layers(
    candidate: Backend,
    evidence: Evidence,
    weights: Mapping[str, torch.Tensor],
    trial: Trial,
    batches: int,
    advance: Advance = still,
) -> tuple[tuple[LayerCost, ...], str | None]:
    """Measure how much each quantised weight adds to the error.

    Args:
        candidate: a program; at the end it runs unchanged again.
        evidence: its quantised weights and their names in the program.
        weights: the reference's.
        trial: with a population.
        batches: number of batches of the population to run.
        advance: called with the finished share of the layers.

    Returns:
        The layers, the greatest share of the error first; and the first reason why a layer could
        not be measured, or None.

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
        how = evidence.quantised.get(key, "differs from the file")
        found.append(LayerCost(key, how, (whole - left) / whole if whole else 0.0, left))
        advance(number / len(evidence.tensors))
    return tuple(sorted(found, key=lambda each: -each.share)), problem


def _error(candidate: Backend, trial: Trial, batches: int) -> float:
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
