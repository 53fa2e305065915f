"""Compare weights with those of a model of which only digests and a few values are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.gates.weights import Stored, exact, pieces, rounded

DTYPES = ("float32", "float16", "bfloat16")
"""Dtypes of weights that can be compared."""

VALUES = 16
"""Number of values that are known of each weight."""

_TINY = 2
"""Greatest subnormal of float16 that counts as 0: converters of ONNX raise smaller weights to it
(1e-7, rounded to float16)."""

_NEAR = 0.05
"""Greatest distance of the known values, relative to their norm, of a changed matrix without a
known name. For two different matrices of a model it is about 1.4."""

_LEAST_MATRIX = 64
"""Least size of a matrix to find by its values; a smaller one might match by chance."""


@dataclass(frozen=True)
class Fingerprints:
    """Digests and a few values of the floating-point weights of a model.

    Attributes:
        keys: of the K weights.
        shapes: of each.
        digests: of each, rounded to each of `DTYPES`, uint64 [K, 3].
        values: some of each, evenly spaced, float32 [K, VALUES].
    """

    keys: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    digests: NDArray[np.uint64]
    values: NDArray[np.float32]


def fingerprints_of(weights: Iterable[tuple[str, Stored]]) -> Fingerprints:
    """Return the fingerprints of the weights in one of `DTYPES`, by their keys."""
    keys: list[str] = []
    shapes: list[tuple[int, ...]] = []
    digests: list[list[int]] = []
    values = [np.zeros((0, VALUES), dtype=np.float32)]
    for key, stored in weights:
        if stored.dtype in DTYPES and stored.values.size:
            keys.append(key)
            shapes.append(stored.values.shape)
            digests.append([_digest(stored, dtype) for dtype in DTYPES])
            values.append(_some(stored)[np.newaxis].astype(np.float32))
    return Fingerprints(
        keys,
        shapes,
        np.array(digests, dtype=np.uint64).reshape(-1, len(DTYPES)),
        np.concatenate(values),
    )


@dataclass
class Compared:
    """Weights that were compared with fingerprints.

    Attributes:
        same: keys of the weights that are the same, correctly rounded at most.
        rounded: by the key of such a weight, the dtype that it was rounded to.
        differing: by key, how a weight differs.
    """

    same: set[str] = field(default_factory=set)
    rounded: dict[str, str] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)


def compare(weights: Iterable[tuple[str, Stored]], known: Fingerprints) -> Compared:
    """Compare weights with fingerprints, one at a time.

    A weight with a known name has to be the same, rounded at most, as does a matrix of another name
    whose values are close to those of a known one. Others, which exporters fold from several, are
    not compared.

    Args:
        weights: by the key, with any prefix of a wrapper or without its own, or by a name that an
            exporter made. Matrices may be transposed.
    """
    index, found, folds = _Index(known), Compared(), set(known.keys)
    for name, stored in weights:
        if stored.dtype in DTYPES and stored.values.size:
            folds.difference_update(_compare(name, stored, index, found))
    # A convolution with a folded BatchNorm keeps its name.
    folded = [index.shape(key) for key in folds if key.endswith(".running_mean")]
    found.differing = {
        key: told
        for key, told in found.differing.items()
        if key not in found.same and index.shape(key)[:1] not in folded
    }
    return found


class _Index:
    """Finds weights by name, shape or digest."""

    def __init__(self, known: Fingerprints) -> None:
        self._known = known
        self._rows = {key: row for row, key in enumerate(known.keys)}
        self._by_end: dict[str, list[str]] = {}
        self._by_size: dict[tuple[int, ...], list[str]] = {}
        self._by_digest: dict[tuple[str, int], list[str]] = {}
        for key, shape, digests in zip(known.keys, known.shapes, known.digests, strict=True):
            self._by_size.setdefault(tuple(sorted(shape)), []).append(key)
            for end in _ends(key):
                self._by_end.setdefault(end, []).append(key)
            for each in zip(DTYPES, map(int, digests), strict=True):
                self._by_digest.setdefault(each, []).append(key)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._known.shapes[self._rows[key]])

    def named(self, name: str, stored: Stored) -> list[str]:
        """Return the keys that a name may be of; the longest part of a name comes first."""
        own = [end for end in _ends(name) if end in self._rows]
        several = dict.fromkeys([*own, *self._by_end.get(name, ())])
        return [key for key in several if key in self.sized(stored)]

    def sized(self, stored: Stored) -> list[str]:
        return self._by_size.get(tuple(sorted(stored.values.shape)), [])

    def same(self, stored: Stored) -> set[str]:
        """Return the keys of the weights with these values."""
        forms = _forms(stored)
        return {
            key
            for form in forms
            for key in self._by_digest.get((stored.dtype, _digest(form, stored.dtype)), ())
        }

    def near(self, keys: Iterable[str], stored: Stored) -> list[str]:
        """Return those of the keys whose values are close to a matrix."""
        if stored.values.ndim != 2 or stored.values.size < _LEAST_MATRIX:
            return []
        forms = [(form.values.shape, _some(form)) for form in _forms(stored)]
        values = {key: self._known.values[self._rows[key]].astype(np.float64) for key in keys}
        return [
            key
            for key, expected in values.items()
            if any(
                shape == self.shape(key)
                and np.linalg.norm(some - expected) < _NEAR * np.linalg.norm(expected)
                for shape, some in forms
            )
        ]

    def is_rounded(self, key: str, dtype: str) -> bool:
        """Whether a weight in this dtype has lost bits of the known one."""
        values = self._known.values[self._rows[key]].astype(np.float64)
        bits = rounded(values, dtype)
        narrow = bits if dtype == "bfloat16" else bits.view(dtype)
        return not np.array_equal(exact(Stored(narrow, dtype)), values)


def _compare(name: str, stored: Stored, index: _Index, found: Compared) -> list[str]:
    """Compare one weight, and return the keys that it may be."""
    named = index.named(name, stored)
    same = index.same(stored)
    # A weight of a single value, such as a bias of zeros, might be any constant.
    several = bool(stored.values.min() != stored.values.max())
    right = [key for key in named if key in same] or ([] if named or not several else [*same])
    for key in right:
        found.same.add(key)
        if index.is_rounded(key, stored.dtype):
            found.rounded[key] = stored.dtype
    if right:
        return right
    near = index.near(named or index.sized(stored), stored) or named[:1]
    for key in near:
        found.differing[key] = "it has other values than in the pinned model"
    return near


def _ends(name: str) -> Iterator[str]:
    """Yield the name, and its endings after each dot."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _forms(stored: Stored) -> list[Stored]:
    """Return a weight, and transposed if it is a matrix."""
    transposed = [Stored(stored.values.T, stored.dtype)] if stored.values.ndim == 2 else []
    return [stored, *transposed]


def _some(stored: Stored) -> NDArray[np.float64]:
    """Return `VALUES` values of a weight, evenly spaced."""
    flat = stored.values.reshape(-1)
    places = np.arange(VALUES) * flat.size // VALUES
    return exact(Stored(flat[places], stored.dtype))


@np.errstate(over="ignore")  # of float16
def _digest(stored: Stored, dtype: str) -> int:
    """Return a digest of a weight, rounded to a dtype."""
    hashed = hashlib.blake2b(digest_size=8)
    for piece in pieces(stored):
        bits: NDArray[Any] = piece.values.view(np.uint32 if dtype == "float32" else np.uint16)
        if dtype != stored.dtype:
            bits = rounded(exact(piece), dtype)
        if dtype == "float16":
            bits = np.where(bits & 0x7FFF > _TINY, bits, np.uint16(0))
        hashed.update(np.ascontiguousarray(bits).tobytes())
    return int.from_bytes(hashed.digest(), "little")
