"""Named rules over the outputs of a candidate and a reference, which pass or fail with figures.

Outputs are numpy arrays by name; see `OUTPUTS` for the names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clipcheck.compare.metrics import Array, Difference, difference, softmax
from clipcheck.compare.tolerances import Contract

OUTPUTS = {
    "image_features": ("image", "component"),
    "text_features": ("prompt", "component"),
    "logits_per_image": ("image", "prompt"),
    "logits_per_text": ("prompt", "image"),
}
"""Every output that a model must give, with what its two dimensions count. Features are not
normalised."""

LOGITS = ("logits_per_image", "logits_per_text")

Outputs = Mapping[str, Array]
Figures = Mapping[str, Mapping[str, float | int | str]]


@dataclass(frozen=True)
class GateResult:
    """What a gate found.

    Attributes:
        name: the gate's.
        passed: whether the rule holds.
        message: one line for people.
        figures: by output, or by what was counted.
    """

    name: str
    passed: bool
    message: str
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What `integrity` has to know beside the outputs.

    Attributes:
        candidate_is_script: whether the candidate is a TorchScript module.
        reference_is_script: whether the reference is one.
        weights: number of weights that were compared bit for bit.
        differing: by key, how a weight differs between the interpreter and the file.
        buffers: by name, the integer that the archive holds and the one that the dimensions of
            the weights imply; None where the archive does not have it.
    """

    candidate_is_script: bool
    reference_is_script: bool
    weights: int
    differing: Mapping[str, str]
    buffers: Mapping[str, tuple[int | None, int]]


def integrity(candidate: Outputs, reference: Outputs, evidence: Evidence) -> GateResult:
    """That the comparison is one: two different things, the same weights, all outputs.

    Passes when the candidate is a TorchScript module and the reference is not; every output of
    `OUTPUTS` is there from both, of the same shape and dtype, not empty and finite; the weights
    agree bit for bit; and the integer buffers are those that the architecture implies.
    """
    problems = [
        *_kind_problems(evidence),
        *_weight_problems(evidence),
        *_output_problems(candidate, reference),
    ]
    figures = {"weights": {"compared": evidence.weights, "differing": len(evidence.differing)}}
    if problems:
        return GateResult("integrity", False, "; ".join(problems), figures)
    message = (
        f"{evidence.weights} weights the same bit for bit in both readings of the file; "
        f"all {len(OUTPUTS)} outputs there, finite, of the same shape and dtype"
    )
    return GateResult("integrity", True, message, figures)


def _kind_problems(evidence: Evidence) -> list[str]:
    if evidence.candidate_is_script and not evidence.reference_is_script:
        return []
    kind = "TorchScript modules" if evidence.reference_is_script else "eager models"
    if evidence.candidate_is_script == evidence.reference_is_script:
        return [f"nothing was compared: both sides are {kind}"]
    return ["the candidate is an eager model and the reference a TorchScript module"]


def _weight_problems(evidence: Evidence) -> list[str]:
    problems = [f"{key}: {reason}" for key, reason in list(evidence.differing.items())[:3]]
    if len(evidence.differing) > 3:
        problems.append(f"{len(evidence.differing) - 3} more weights differ")
    if evidence.weights == 0:
        problems.append("no weights were compared")
    for name, (found, implied) in evidence.buffers.items():
        if found is not None and found != implied:
            problems.append(f"{name} is {found}, and the weights imply {implied}")
    return problems


def _output_problems(candidate: Outputs, reference: Outputs) -> list[str]:
    problems = []
    for name in OUTPUTS:
        sides = {"candidate": candidate, "reference": reference}
        absent = [side for side, outputs in sides.items() if name not in outputs]
        if absent:
            problems.append(f"{name} is missing from the {' and the '.join(absent)}")
            continue
        mine, other = candidate[name], reference[name]
        if mine.shape != other.shape:
            problems.append(f"{name} has shape {mine.shape} in place of {other.shape}")
        if mine.dtype != other.dtype:
            problems.append(f"{name} has dtype {mine.dtype} in place of {other.dtype}")
        if mine.size == 0:
            problems.append(f"{name} is empty")
        problems += [
            f"{name} of the {side} is not finite in row {_first_bad_row(outputs[name])}"
            for side, outputs in sides.items()
            if not np.isfinite(outputs[name]).all()
        ]
    return problems


def _first_bad_row(output: Array) -> int:
    return int(np.argwhere(~np.isfinite(output))[0][0])


def contract(
    candidate: Outputs, reference: Outputs, limits: Contract, first_rows: Mapping[str, int]
) -> GateResult:
    """The classic assertion: ``np.allclose`` on the softmax of both logits.

    Args:
        candidate: with both `LOGITS`.
        reference: with both `LOGITS`.
        limits: absolute and relative tolerance.
        first_rows: by ``image`` and ``prompt``, the number of the first row, for the message.
    """
    unusable = _unusable(candidate, reference)
    if unusable:
        return GateResult("contract", False, unusable)
    found = {
        name: difference(
            softmax(candidate[name]), softmax(reference[name]), atol=limits.atol, rtol=limits.rtol
        )
        for name in LOGITS
    }
    figures = {name: _figures(this, limits) for name, this in found.items()}
    name = max(found, key=lambda name: (found[name].mismatched, found[name].max_abs))
    passed = all(this.mismatched == 0 for this in found.values())
    if passed:
        message = (
            f"probabilities agree within atol {limits.atol:g} and rtol {limits.rtol:g}; "
            f"greatest difference {found[name].max_abs:.2g}"
        )
    else:
        message = mismatch_message(name, found[name], limits, first_rows)
    return GateResult("contract", passed, message, figures)


def _unusable(candidate: Outputs, reference: Outputs) -> str:
    for name in LOGITS:
        if name not in candidate or name not in reference:
            return f"{name} is missing, so that nothing can be compared"
        if candidate[name].shape != reference[name].shape:
            return f"{name} has different shapes, so that nothing can be compared"
        if candidate[name].size == 0:
            return f"{name} is empty, so that nothing can be compared"
    return ""


def _figures(found: Difference, limits: Contract) -> dict[str, float | int | str]:
    return {
        "max_abs": found.max_abs,
        "mismatched": found.mismatched,
        "elements": found.elements,
        "atol": limits.atol,
        "rtol": limits.rtol,
    }


def mismatch_message(
    name: str, found: Difference, limits: Contract, first_rows: Mapping[str, int]
) -> str:
    """Headline; where the greatest excess is; what was allowed there, and why."""
    where = ", ".join(
        f"{kind} {first_rows.get(kind, 0) + position}"
        for kind, position in zip(OUTPUTS[name], found.index, strict=True)
    )
    return (
        f"softmax({name}) differs in {found.mismatched} of {found.elements} probabilities; "
        f"worst at {where}: candidate {found.candidate:.4g}, reference {found.reference:.4g}, "
        f"{found.found:.2g} apart; up to {found.allowed:.2g} allowed "
        f"(atol {limits.atol:g} + rtol {limits.rtol:g} x reference)"
    )


def worst(results: Sequence[GateResult]) -> GateResult:
    """One result for a gate that judged several batches.

    It passes when all do; the message is that of the first that failed, or of the one with the
    greatest difference; the figures are the greatest and the sums.
    """
    failed = [result for result in results if not result.passed]
    speaker = failed[0] if failed else max(results, key=_greatest)
    return GateResult(speaker.name, not failed, speaker.message, _merged(results))


def _greatest(result: GateResult) -> float:
    return max((float(figures.get("max_abs", 0)) for figures in result.figures.values()), default=0)


def _merged(results: Sequence[GateResult]) -> Figures:
    merged: dict[str, dict[str, float | int | str]] = {}
    for result in results:
        for output, figures in result.figures.items():
            mine = merged.setdefault(output, dict(figures))
            if mine is not figures and result is not results[0]:
                _absorb(mine, figures)
    return merged


def _absorb(mine: dict[str, float | int | str], figures: Mapping[str, float | int | str]) -> None:
    for key in ("mismatched", "elements"):
        if key in figures:
            mine[key] = int(mine[key]) + int(figures[key])
    if "max_abs" in figures:
        mine["max_abs"] = max(float(mine["max_abs"]), float(figures["max_abs"]))
