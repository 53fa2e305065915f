"""Cases with exactly known errors vs float64, for the tests of gates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from clipcheck.gates.result import LOGITS, OUTPUTS, Case
from clipcheck.gates.tolerances import Limits

APART = Limits(
    roundoff=2**-24,
    features=2,
    feature_row=5,
    logits=3,
    logit_row=7,
    module=10,
    cap=64,
    allclose=0.5,
)
"""No two limits alike, so that none does for another."""

SCALE = 128.0
"""A power of two, so that nothing is rounded on the way to a ratio."""

UNIT = 2.0**-16
"""The eager model's error in every element, where it has one: more than a rounding of a logit."""

Named = dict[str, np.ndarray]


def exact_outputs(images: int = 3, prompts: int = 2) -> Named:
    """Features of root mean square 1, and logits that are multiples of an eighth."""
    generator = np.random.default_rng(0)
    logits = generator.permutation(images * prompts).reshape(images, prompts) / 8.0
    return {
        "image_features": generator.choice([-1.0, 1.0], (images, 8)),
        "text_features": generator.choice([-1.0, 1.0], (prompts, 8)),
        "logits_per_image": logits,
        "logits_per_text": logits.T.copy(),
    }


def off_by(exact: Named, ratios: Mapping[str, ArrayLike]) -> Named:
    """Return outputs that are off by so many units in every element: one ratio for all, or one per
    row."""
    generator = np.random.default_rng(1)
    found = {}
    for name, values in exact.items():
        ratio = np.broadcast_to(np.asarray(ratios.get(name, 1.0)), len(values))
        found[name] = values + generator.choice([-UNIT, UNIT], values.shape) * ratio[:, np.newaxis]
    return found


def measured(
    candidate: Mapping[str, ArrayLike] | None = None,
    reference: Mapping[str, ArrayLike] | None = None,
    *,
    images: int = 3,
    prompts: int = 2,
) -> Case:
    """Return a candidate and an eager model with errors of so many units; 1 by default."""
    exact = exact_outputs(images, prompts)
    return Case(
        candidate=off_by(exact, candidate or {}),
        reference=off_by(exact, reference or {}),
        exact=exact,
    )


def one_row(rows: int, row: int, ratio: float, others: float = 1.0) -> np.ndarray:
    """Return ratios by row that are equal in all rows but one."""
    ratios = np.full(rows, others)
    ratios[row] = ratio
    return ratios


def limits_of(name: str, limits: Limits = APART) -> tuple[float, float]:
    """Return the limits of this output for a whole batch and for one row."""
    if name in LOGITS:
        return limits.logits, limits.logit_row
    return limits.features, limits.feature_row


def rows_of(name: str, images: int, prompts: int) -> int:
    """Return the number of rows of this output."""
    return images if OUTPUTS[name][0] == "image" else prompts


def spoilt(array: np.ndarray, value: float) -> np.ndarray:
    """Put a value into the first column of the second row."""
    array = array.copy()
    array[1, 0] = value
    return array


NOT_FINITE = (np.nan, np.inf, -np.inf)
