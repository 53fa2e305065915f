"""Find the row that a candidate fails on, of inputs that nothing can be drawn like.

Where neither model tells how its inputs are made, there is nothing to shrink: the smallest failing
input is one of the given rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipcheck.gates.result import Case
from clipcheck.harness.search.inputs import Drawn
from clipcheck.harness.search.probe import Probe, worst
from clipcheck.inputs.batches import Batch
from clipcheck.inputs.examples import Example, Preprocessing, ids_of
from clipcheck.results.failing import Failing


def worst_row(probe: Probe, drawn: Drawn, cases: Sequence[Case]) -> Failing | None:
    """Return the given row that is furthest off alone; if none is, the batch that is; None if no
    batch fails."""
    margins = [probe.margins(case) for case in cases]
    most = [max(each.values()) for each in margins]
    if not max(most) > 1:
        return None
    failing = [drawn.batches[n] for n, each in enumerate(most) if each > 1]
    alone = [
        _failing(probe, row, drawn.preprocessing, shrunk=True)
        for given in failing
        for row in _rows(given)
    ]
    found = max(alone, key=lambda each: each.measure.margin)
    if found.measure.margin > 1:
        return found
    whole = drawn.batches[int(np.argmax(most))]
    return _failing(probe, whole, drawn.preprocessing, shrunk=False)


def _rows(given: Batch) -> list[Batch]:
    """Return each image and each prompt alone."""
    images = [given.select([n], []) for n in range(len(given.pixels))]
    return [*images, *(given.select([], [n]) for n in range(len(given.tokens)))]


def _failing(probe: Probe, given: Batch, preprocessing: Preprocessing, *, shrunk: bool) -> Failing:
    images = tuple(preprocessing.image_of(pixels) for pixels in given.pixels)
    prompts = tuple(ids_of(row, preprocessing.texts) for row in given.tokens)
    return Failing(
        example=Example(images, prompts), measure=worst(probe.measure(given)), shrunk=shrunk
    )
