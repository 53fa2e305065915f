"""Find the layers of a lossy program that add most to its error, by running each alone in float.

Only the operations after a layer run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Array, Named
from clipcheck.errors import RunError
from clipcheck.gates.budget import LayerCost, squared_error
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import FEATURES, OUTPUTS, Case, in_form
from clipcheck.inputs.batches import Batch
from clipcheck.system.progress import Advance, still

if TYPE_CHECKING:
    import torch

    from clipcheck.harness.trial import Trial


def costly_layers(
    candidate: Backend,
    evidence: Evidence,
    weights: Mapping[str, torch.Tensor],
    trial: Trial,
    batches: int,
    advance: Advance = still,
) -> tuple[tuple[LayerCost, ...], str | None]:
    """Measure how much each quantised weight adds to the error of the features.

    Args:
        candidate: a program.
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
    sample = list(_rows(candidate, trial, batches))
    given = [(batch.pixels, batch.tokens) for batch, _ in sample]
    plain = [candidate.outputs(*each) for each in given]
    exact = [in_form(each, candidate.normalised) for _, each in sample]

    def error(outputs: Sequence[Named]) -> float:
        return squared_error(
            [
                Case(
                    candidate={**before, **after},
                    reference=true,
                    exact=true,
                    absent=candidate.absent,
                )
                for before, after, true in zip(plain, outputs, exact, strict=True)
            ]
        )

    if candidate.absent.issuperset(FEATURES):
        raise RunError("it gives no features", remedy="Export it with its features.")
    whole = error(plain)
    found: list[LayerCost] = []
    problem = None
    for number, (key, name) in enumerate(evidence.tensors.items(), start=1):
        try:
            left = error(candidate.outputs_in_float(name, weights[key], given))
        except RunError as failed:
            problem = problem or f"{key}: {failed.problem}"
            continue
        how = evidence.quantised.get(key, "differs from the file")
        found.append(LayerCost(key, how, (whole - left) / whole if whole else 0.0, left))
        advance(number / len(evidence.tensors))
    return tuple(sorted(found, key=lambda each: -each.share)), problem


def _rows(
    candidate: Backend, trial: Trial, batches: int
) -> Iterator[tuple[Batch, Mapping[str, Array]]]:
    """Yield batches of the population that the program can run, with their outputs in float64."""
    for batch, exact in zip(trial.population[:batches], trial.of_population, strict=False):
        images, prompts = candidate.batch_sizes
        if images is None and prompts is None:
            yield batch, exact
            continue
        sizes = {"image": images or len(batch.pixels), "prompt": prompts or len(batch.tokens)}
        for first in range(min(len(batch.rows[kind]) // size for kind, size in sizes.items())):
            rows = {k: list(range(first * n, (first + 1) * n)) for k, n in sizes.items()}
            yield (
                batch.select(rows["image"], rows["prompt"]),
                {name: exact[name][rows[OUTPUTS[name][0]]] for name in FEATURES if name in exact},
            )
