"""Find whether a failing program takes colours that it normalises itself, in place of pixels.

A file does not tell this of floating-point pixels. It is told, and never assumed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipcheck.backends.base import Backend
from clipcheck.backends.signature import ASKED, COLOURS, LEVELS
from clipcheck.errors import RunError
from clipcheck.gates.budget import unit
from clipcheck.gates.result import Case
from clipcheck.harness.trial import Trial

_AGREES = 0.99
"""Least cosine of features that agree but for a loss of precision."""

_NEARER = 0.1
"""Most of the distance (1 minus cosine) that is left where the other pixels are right."""

_WRITTEN = {COLOURS: "colours from 0 to 1", LEVELS: "colours from 0 to 255"}


def told_colours(candidate: Backend, trial: Trial, cases: Sequence[Case]) -> tuple[str, ...]:
    """Return a line that says with which other pixels its features agree; nothing if with none.

    Args:
        candidate: which failed.
        cases: of the trial's batches.
    """
    taken, name = candidate.pixels, "image_features"
    # Only for images that are colours: others cannot be given so.
    within = (
        [taken.replaced(COLOURS).is_seen(each.pixels) for each in trial.batches] if taken else []
    )
    fitting = [number for number, fits in enumerate(within) if fits]
    if taken is None or not fitting or name not in cases[fitting[0]].candidate:
        return ()
    batch, case = trial.batches[fitting[0]], cases[fitting[0]]

    def distance(found: np.ndarray) -> float:
        return 1 - float(np.sum(unit(found) * unit(case.exact[name]), axis=1).min())

    before = distance(case.candidate[name])
    for meaning, written in _WRITTEN.items():
        pixels = taken.replaced(meaning).colours_of(batch.pixels)
        try:
            found = candidate.outputs(pixels, batch.tokens)[name]
        except RunError:
            continue
        after = distance(found) if np.isfinite(found).all() else np.inf
        if after < min(1 - _AGREES, _NEARER * before):
            asked = f"{ASKED} {taken.name}={meaning}"
            return (f"its image features agree when it is given {written}: if so, add {asked}",)
    return ()
