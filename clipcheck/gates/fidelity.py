"""The gates ``fidelity`` and ``precision``: as close to float64 as the eager model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipcheck.gates.distance import Distance, Rows, Ruler
from clipcheck.gates.result import (
    LOGITS,
    MEANT,
    Case,
    Figures,
    GateResult,
    expected_outputs,
    unusable,
)
from clipcheck.gates.tolerances import Limits
from clipcheck.system.figures import multiple, number


def fidelity(cases: Sequence[Case], limits: Limits, scale: float) -> GateResult:
    """Judge in float32 that outputs, batches and rows are as close to float64 as the eager model's.

    Args:
        scale: the model's exp(logit_scale).
    """
    problem = unusable(cases)
    if problem:
        return GateResult(name="fidelity", passed=False, message=problem, margin=float("inf"))
    found = Ruler(cases, limits, scale).distances(cases)
    worst = max(found, key=lambda distance: distance.margin)
    measured = worst.ratio, worst.error, worst.allowed
    message = distance_text(worst.output, worst.place, *measured, limits.unit)
    return GateResult(
        name="fidelity",
        passed=worst.margin <= 1,
        message=message,
        figures=_figures(found),
        margin=worst.margin,
    )


def precision(cases: Sequence[Case], limits: Limits, scale: float) -> GateResult:
    """Judge in float16 or bfloat16 as `fidelity` does, with a cap for every logit as well."""
    near = fidelity(cases, limits, scale)
    if near.margin == float("inf"):
        return GateResult(
            name="precision",
            passed=False,
            message=near.message,
            figures=near.figures,
            margin=near.margin,
        )
    logits = expected_outputs(cases, LOGITS)
    if not logits:
        return GateResult(
            name="precision",
            passed=near.passed,
            message=near.message,
            figures=near.figures,
            margin=near.margin,
        )
    ruler = Ruler(cases, limits, scale)
    worst = max(
        (_worst_logit(name, case, ruler.caps(name, case)) for name in logits for case in cases),
        key=lambda logit: logit.error / logit.cap,
    )
    error, cap = worst.error, worst.cap
    figures = {**near.figures, "logits": {"max_abs": error, "cap": cap}}
    margin = max(near.margin, error / cap)
    if error <= cap:
        message = f"{near.message}; worst logit off by {number(error)} (limit {number(cap)})"
        return GateResult(
            name="precision", passed=near.passed, message=message, figures=figures, margin=margin
        )
    fixed = cap == limits.logit_cap(scale)
    reason = f"{limits.cap:g} ulps" if fixed else f"{limits.logit_row:g}x the {limits.unit} error"
    message = (
        f"{MEANT[worst.name]} off by {number(error)} at {worst.place} "
        f"(limit {number(cap)}, {reason})"
    )
    return GateResult(
        name="precision", passed=False, message=message, figures=figures, margin=margin
    )


@dataclass(frozen=True)
class _Logit:
    name: str
    place: str
    error: float
    cap: float


def _worst_logit(name: str, case: Case, caps: Rows) -> _Logit:
    """Return the logit with the greatest share of its row's limit."""
    errors = np.abs(case.candidate[name].astype(np.float64) - case.exact[name])
    shares = errors / caps[:, None]
    row, column = (int(i) for i in np.unravel_index(int(np.argmax(shares)), shares.shape))
    place = case.where(name, (row, column))
    return _Logit(name, place, float(errors[row, column]), float(caps[row]))


def distance_text(
    output: str, place: str, ratio: float, error: float, allowed: float, unit: str = "eager"
) -> str:
    """Write how far an output is from float64.

    Args:
        place: the row, or the batch.
        ratio: multiple of the eager model's error.
        allowed: the allowed ratio.
        unit: see `clipcheck.gates.tolerances.Limits`.
    """
    if ratio == float("inf"):
        return f"{MEANT[output]} of {place} are not finite, or the eager model's are not"
    return f"worst error {against_eager(error, ratio, allowed, unit)}, {MEANT[output]} of {place}"


def against_eager(error: float, ratio: float, allowed: float, unit: str = "eager") -> str:
    """Write an error beside the eager model's: ``3.5e-7, eager 3.4e-7 (1.0x, limit 10x)``."""
    eager = f", {unit} {number(error / ratio)}" if ratio else ""
    return f"{number(error)}{eager} ({multiple(ratio)}, limit {allowed:g}x)"


def _figures(found: Sequence[Distance]) -> Figures:
    """Return the worst of each output, and the greatest ratio for each limit."""
    by_output: dict[str, Distance] = {}
    greatest: dict[str, float] = {}
    for distance in found:
        best = by_output.get(distance.output)
        if best is None or distance.margin > best.margin:
            by_output[distance.output] = distance
        greatest[distance.limit] = max(distance.ratio, greatest.get(distance.limit, 0.0))
    return {
        **{
            name: {
                "rmse_ratio": distance.ratio,
                "allowed": distance.allowed,
                "rmse": distance.error,
                "worst": distance.place,
            }
            for name, distance in by_output.items()
        },
        "greatest": greatest,
    }
