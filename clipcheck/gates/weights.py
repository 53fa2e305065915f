"""The gate ``weights``: the weights of a file are the reference's, rounded at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.gates.result import Figures, GateResult
from clipcheck.system.figures import counted, number

Float64 = NDArray[np.float64]

_FLOATS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
_BITS = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}

_NAMED = 3
"""Number of differing weights that a message names; the rest are counted."""

_PIECE = 1 << 18
"""Elements that are compared at once: 2 MiB in float64, which fit into caches."""


@dataclass(frozen=True)
class Stored:
    """A weight as stored in a file.

    Attributes:
        values: of any shape. bfloat16, which numpy does not have, as uint16 of the same bits.
        dtype: torch's name of the dtype.
    """

    values: NDArray[Any]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class WeightDifference:
    """How a weight of the candidate differs from the reference's.

    The figures are infinite if there are no numbers to compare.

    Attributes:
        otherwise: the difference, if it is not in the values of floating-point numbers.
        harmless: whether it does not fail: the values are the same, or not used.
        differing: number of elements that are not the reference's, correctly rounded.
        elements: number of all elements.
        max_abs: greatest absolute difference, from the reference before rounding.
        relative: ``max_abs`` divided by the root mean square of the reference's tensor.
        ulps: greatest distance from the reference, rounded, in steps of the candidate's dtype: 1
            for the next number.
    """

    key: str
    otherwise: str = ""
    harmless: bool = False
    differing: int = 0
    elements: int = 0
    max_abs: float = float("inf")
    relative: float = float("inf")
    ulps: float = float("inf")
    dtype: str = ""

    def __str__(self) -> str:
        if self.otherwise:
            return f"{self.key} {self.otherwise}"
        ulps = f"{self.ulps:,.0f} {'ulp' if self.ulps == 1 else 'ulps'}"
        return (
            f"{self.key} by up to {ulps} of {self.dtype} "
            f"(max abs {number(self.max_abs)}, relative {number(self.relative)})"
        )


def weights(found: Sequence[WeightDifference], compared: int) -> GateResult:
    """Judge that each weight is the reference's, correctly rounded to the candidate's dtype.

    Args:
        compared: number of weights that both have.
    """
    wrong = [each for each in found if not each.harmless]
    wrong.sort(key=lambda each: (-each.relative, each.key))
    counts = {"compared": compared, "differing": len(wrong)}
    figures: Figures = {"weights": counts, **{each.key: _figures(each) for each in wrong}}
    if not compared:
        message = "no weights were compared: the two files have none in common"
        return GateResult(
            name="weights", passed=False, message=message, figures=figures, margin=float("inf")
        )
    if not wrong:
        message = f"all {compared} weights are the reference's, rounded at most"
        return GateResult(
            name="weights",
            passed=True,
            message="; ".join([message, *map(str, found)]),
            figures=figures,
        )
    more = [f"and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
    named = ", ".join([*map(str, wrong[:_NAMED]), *more])
    message = f"weights differ in {counted(len(wrong), 'tensor')}: {named}"
    return GateResult(
        name="weights", passed=False, message=message, figures=figures, margin=float("inf")
    )


def absent(key: str, side: str, *, harmless: bool) -> WeightDifference:
    """Return the difference for a weight that one of the files does not have.

    Args:
        side: without the weight, ``candidate`` or ``reference``.
        harmless: whether the model does not use it.
    """
    return WeightDifference(key=key, otherwise=f"is missing from the {side}", harmless=harmless)


def difference(key: str, candidate: Stored, reference: Stored) -> WeightDifference | None:
    """Return how the candidate differs from the reference rounded to nearest (ties to even), or
    None.

    From float64 to float16 or bfloat16, rounding by way of float32 is also accepted, as torch does
    it. Zero equals minus zero, and NaN equals NaN. Integers must be equal, whatever their dtypes.
    """
    shapes = candidate.values.shape, reference.values.shape
    if shapes[0] != shapes[1]:
        otherwise = f"has shape {list(shapes[0])} in place of {list(shapes[1])}"
        if {candidate.values.size, reference.values.size} != {1} or () not in shapes:
            return WeightDifference(key=key, otherwise=otherwise, dtype=candidate.dtype)
        # Scalars with and without a dimension are used alike (openai/CLIP#67).
        flat = (Stored(each.values.reshape(1), each.dtype) for each in (candidate, reference))
        return difference(key, *flat) or WeightDifference(
            key=key, otherwise=otherwise, harmless=True
        )
    if candidate.dtype in _BITS and reference.dtype in _BITS:
        return _measured(key, candidate, reference)
    return _of_integers(key, candidate, reference)


def _figures(found: WeightDifference) -> dict[str, float | int | str]:
    if found.otherwise:
        return {"otherwise": found.otherwise}
    return {
        "differing": found.differing,
        "elements": found.elements,
        "max_abs": found.max_abs,
        "relative": found.relative,
        "ulps": found.ulps,
        "dtype": found.dtype,
    }


def _of_integers(key: str, candidate: Stored, reference: Stored) -> WeightDifference | None:
    """Compare buffers of integers, exactly."""
    mine, other = exact(candidate), exact(reference)
    apart = mine != other
    if not apart.any():
        return None
    first = int(np.flatnonzero(apart)[0])
    values = f"{mine.flat[first]:g} in place of {other.flat[first]:g}"
    return WeightDifference(key=key, otherwise=f"is {values}", dtype=candidate.dtype)


# Overflows and NaN count as differences, without a warning.
@np.errstate(all="ignore")
def _measured(key: str, candidate: Stored, reference: Stored) -> WeightDifference | None:
    differing, max_abs, ulps, squares = 0, 0.0, 0.0, 0.0
    for mine, other in zip(pieces(candidate), pieces(reference), strict=True):
        values = exact(other)
        squares += float(np.dot(values, values))
        between = _ulps(mine, other, values)
        apart = between > 0
        if apart.any():
            differing += int(np.count_nonzero(apart))
            ulps = max(ulps, float(between.max()))
            # NaN on one side counts as infinitely far.
            errors = np.nan_to_num(np.abs(exact(mine) - values)[apart], nan=np.inf, posinf=np.inf)
            max_abs = max(max_abs, float(errors.max()))
    if not differing:
        return None
    rms = float(np.sqrt(squares / reference.values.size))
    relative = max_abs / rms if rms else float("inf")
    elements = reference.values.size
    return WeightDifference(
        key=key,
        otherwise="",
        harmless=False,
        differing=differing,
        elements=elements,
        max_abs=max_abs,
        relative=relative,
        ulps=ulps,
        dtype=candidate.dtype,
    )


def pieces(stored: Stored) -> Iterator[Stored]:
    """Yield a weight in pieces that fit into caches, flattened."""
    flat = stored.values.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        yield Stored(flat[start : start + _PIECE], stored.dtype)


def exact(stored: Stored) -> Float64:
    """Return the values in float64, which holds those of all other dtypes."""
    if stored.dtype == "bfloat16":
        # The shift must have the same dtype: numpy 1 would promote a scalar to int64.
        bits = np.left_shift(stored.values.astype(np.uint32), np.uint32(16))
        return bits.view(np.float32).astype(np.float64)
    return stored.values.astype(np.float64)


def _ulps(candidate: Stored, reference: Stored, values: Float64) -> Float64:
    """Return each element's distance from the rounded reference, in steps of its dtype."""
    dtype = candidate.dtype
    bits = candidate.values.view(_BITS[dtype])
    between = _between(bits, rounded(values, dtype))
    if reference.dtype == "float64" and dtype in ("float16", "bfloat16"):
        twice = values.astype(np.float32).astype(np.float64)
        between = np.minimum(between, _between(bits, rounded(twice, dtype)))
    mine, other = np.isnan(exact(candidate)), np.isnan(values)
    between[mine | other] = np.inf
    between[mine & other] = 0
    return between


def _between(one: NDArray[Any], other: NDArray[Any]) -> Float64:
    """Count the steps between two numbers by their bits, which count upwards for each sign."""
    sign = np.uint64(1 << (8 * one.itemsize - 1))
    a, b = one.astype(np.uint64), other.astype(np.uint64)
    same = (a ^ b) & sign == 0
    a, b = a & ~sign, b & ~sign
    return np.where(same, np.maximum(a, b) - np.minimum(a, b), a + b).astype(np.float64)


def rounded(values: Float64, dtype: str) -> NDArray[Any]:
    """Return the bits of the nearest numbers of a dtype, ties to even; undefined for NaN."""
    if dtype != "bfloat16":
        return values.astype(_FLOATS[dtype]).view(_BITS[dtype])
    single = values.astype(np.float32)
    # Round to odd first, so that the second rounding gives the same as a single one
    # (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    bits = single.view(np.uint32)
    bits = bits - (np.abs(single.astype(np.float64)) > np.abs(values))
    bits |= (bits.view(np.float32).astype(np.float64) != values).astype(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return np.asarray(rounded.astype(np.uint16))
