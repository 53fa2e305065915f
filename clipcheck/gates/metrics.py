"""Numbers computed from pairs of outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def softmax(logits: Array) -> NDArray[np.float64]:
    """Return probabilities over the last dimension, in float64, of the same shape."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: Array) -> NDArray[np.float64]:
    """Return the probability of each pair alone, in float64, of the same shape."""
    # tanh does not overflow.
    return np.asarray((1 + np.tanh(logits.astype(np.float64) / 2)) / 2)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of ``candidate`` and ``reference``, and the worst element.

    Attributes:
        mismatched: number of elements that differ by more than the limit.
        max_abs: greatest absolute difference.
        index: of the element with the greatest multiple of its limit.
        candidate: the value there.
        reference: the value there.
        allowed: the difference allowed there, ``atol + rtol * abs(reference)``.
    """

    elements: int
    mismatched: int
    max_abs: float
    index: tuple[int, ...]
    candidate: float
    reference: float
    allowed: float

    @property
    def found(self) -> float:
        """The absolute difference at `index`."""
        return abs(self.candidate - self.reference)


def difference(candidate: Array, reference: Array, *, atol: float, rtol: float) -> Difference:
    """Compare element by element as `numpy.allclose` does: NaN is close to nothing.

    Args:
        candidate: of the same shape as ``reference``, with at least one element.
    """
    close = np.isclose(candidate, reference, atol=atol, rtol=rtol)
    apart = np.abs(candidate.astype(np.float64) - reference.astype(np.float64))
    allowed = atol + rtol * np.abs(reference.astype(np.float64))
    # Sorted by the multiple of the limit, as margins are; NaN is sorted last, so as the greatest.
    times = np.divide(apart, allowed, out=np.where(apart == 0, 0, np.inf), where=allowed > 0)
    order = np.lexsort((apart.ravel(), times.ravel()))
    worst = np.unravel_index(int(order[-1]), apart.shape)
    index = tuple(int(i) for i in worst)
    return Difference(
        elements=close.size,
        mismatched=int(close.size - np.count_nonzero(close)),
        max_abs=float(apart.max()),
        index=index,
        candidate=float(candidate[index]),
        reference=float(reference[index]),
        allowed=float(allowed[index]),
    )


def unit(features: Array) -> Array:
    """Features [N, E] with the length 1, of the dtype that they have."""
    wide = features.astype(np.float64 if features.dtype == np.float64 else np.float32)
    return np.asarray(wide / np.linalg.norm(wide, axis=-1, keepdims=True), dtype=features.dtype)


def row_rms(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Root mean square of each row, over all other dimensions, in float64."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    return np.asarray(np.sqrt(np.mean(flat * flat, axis=1)))


def rms(values: NDArray[np.floating]) -> float:
    """Root mean square of all elements, in float64. NaN and infinities stay what they are."""
    flat = values.astype(np.float64).ravel()
    return float(np.sqrt(np.dot(flat, flat) / flat.size))
