"""Find the smallest input that a candidate fails on.

Inputs are drawn first and run in batches, not in one forward pass each. If a row fails, Hypothesis
draws the same inputs again with the failure as a condition, and shrinks the failing one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from clipcheck.gates.result import Case
from clipcheck.harness.search.inputs import Drawn
from clipcheck.harness.search.probe import KINDS, Probe, worst
from clipcheck.harness.search.source import Pool
from clipcheck.inputs.batches import MOST_ROWS, Batch
from clipcheck.inputs.digest import digest
from clipcheck.inputs.examples import Example, Kind, batch, ids_of, spelled, storable
from clipcheck.results.failing import Failing, Measure

SEARCHED = 200
"""Inputs to try if the check failed on one that Hypothesis did not draw."""

_TOGETHER = 50
"""Batches to try if no row fails alone."""

_SECONDS = 60.0
"""Time limit for shrinking."""


def smallest(probe: Probe, drawn: Drawn, cases: Sequence[Case]) -> Failing | None:
    """Return the smallest input that a candidate fails on, or None if it fails on no batch.

    Raises:
        RunError: the eager model cannot be run.
    """
    return _Search(probe, drawn).look([probe.margins(case) for case in cases])


class _Search:
    def __init__(self, probe: Probe, drawn: Drawn) -> None:
        self._probe = probe
        self._drawn = drawn
        self._preprocessing = drawn.preprocessing
        self._source = drawn.source
        self._deadline = float("inf")
        self._first: Example | None = None
        self._fails_in_batch: dict[str, bool] = {}
        self._measured: dict[str, Measure] = {}

    def look(self, margins: Sequence[Mapping[Kind, float]]) -> Failing | None:
        for kind in _suspects(margins):
            found = self._single(kind) or self._several(kind)
            if found:
                return self._measure_saved(found)
        most = [max(each.values()) for each in margins]
        if not max(most) > 1:
            return None
        return self._whole_batch(self._drawn.batches[int(np.argmax(most))])

    def _single(self, kind: Kind) -> Example | None:
        """Find one image or one prompt that fails alone."""
        if kind == "pair":
            return None
        counts = self._source.counts(self._drawn.asked)
        for pool in self._source.pools(kind):
            for count in (counts[pool.name], SEARCHED):
                if count and self._any_fails(self._source.gather(pool, count)):
                    found = self._shrink(pool, count)
                    if found:
                        return found
        return None

    def _several(self, kind: Kind) -> Example | None:
        """Find rows that fail together, or a single one that fails only outside of a batch."""
        self._fails_in_batch.clear()  # a row that passes in a batch may still fail alone
        return self._shrink(self._source.together(kind), _TOGETHER)

    def _shrink(self, pool: Pool, count: int) -> Example | None:
        self._deadline = float("inf")
        self._first = None
        return self._source.find(pool, self._fails, count)

    def _fails(self, example: Example) -> bool:
        """Tell whether an input fails alone. After the time limit, unmeasured inputs do not."""
        given = batch(example, self._preprocessing)
        key = digest([given])
        if key not in self._measured:
            if not self._fails_in_batch.get(key, True) or time.monotonic() > self._deadline:
                return False
            self._measured[key] = worst(self._probe.measure(given))
        failing = self._measured[key].margin > 1
        if failing:
            self._first = self._first or example
            self._deadline = min(self._deadline, time.monotonic() + _SECONDS)
        return failing

    def _any_fails(self, examples: Sequence[Example]) -> bool:
        """Run examples in batches until one fails, and record which rows fail."""
        rows = [batch(example, self._preprocessing) for example in examples]
        for start in range(0, len(rows), MOST_ROWS):
            some = rows[start : start + MOST_ROWS]
            measures = self._probe.measure(_joined(some))
            for row, measure in zip(some, measures, strict=True):
                self._fails_in_batch[digest([row])] = measure.margin > 1
            if any(measure.margin > 1 for measure in measures):
                return True
        return False

    def _measure_saved(self, found: Example) -> Failing:
        """Measure the example in the form in which it is saved, and describe that form."""
        first = self._first and self._as_saved(self._first)
        found = self._as_saved(found)
        given = batch(found, self._preprocessing)
        again = worst(self._probe.measure(given))
        # A failure that depends on the number of calls may not repeat.
        measure = again if again.margin > 1 else self._measured[digest([given])]
        return Failing(example=found, measure=measure, shrunk=True, first=first)

    def _as_saved(self, example: Example) -> Example:
        """Convert images to modes that PNG has, and ids to texts where possible."""
        images = tuple(storable(image, self._preprocessing) for image in example.images)
        return spelled(Example(images, example.prompts), self._preprocessing)

    def _whole_batch(self, given: Batch) -> Failing:
        """Return the batch with the greatest margin, if nothing smaller fails."""
        images = tuple(self._preprocessing.image_of(pixels) for pixels in given.pixels)
        prompts = tuple(ids_of(row) for row in given.tokens)
        example = spelled(Example(images, prompts), self._preprocessing)
        return Failing(example=example, measure=worst(self._probe.measure(given)), shrunk=False)


def _suspects(margins: Sequence[Mapping[Kind, float]]) -> Iterator[Kind]:
    """Yield the kinds of input that fail, the worst first. Pairs come last: wrong features also
    give wrong logits."""
    greatest = {kind: max(each.get(kind, 0.0) for each in margins) for kind in KINDS}
    failing = [kind for kind in KINDS if greatest[kind] > 1]
    yield from sorted(failing, key=lambda kind: (kind == "pair", -greatest[kind]))


def _joined(rows: Sequence[Batch]) -> Batch:
    """Join batches of one row into one batch."""
    described = {
        kind: tuple(name for row in rows for name in row.rows[kind]) for kind in ("image", "prompt")
    }
    return Batch(
        np.concatenate([row.pixels for row in rows]),
        np.concatenate([row.tokens for row in rows]),
        described,
        {"image": 0, "prompt": 0},
    )
