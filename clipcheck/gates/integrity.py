"""The gate ``integrity``: the candidate is complete, and not the reference itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipcheck.gates.result import (
    Case,
    GateResult,
    eager_not_finite,
    expected_outputs,
    where_not_finite,
)
from clipcheck.system.figures import counted

_NAMED = 3
"""Number of wrong weights that a message names; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Findings that `integrity` needs in addition to the outputs.

    Attributes:
        weights: number of the candidate's weights that were compared with the file's bit for bit;
            None if they are compiled into it and cannot be compared.
        doubts: reasons why the candidate may not be what its name says, or may be the reference.
        differing: by key, how a weight of the candidate differs from the file's.
        buffers: by name, the integer in the archive (None if missing) and the one that the weights'
            dimensions imply.
        unused: by method, weights that its code does not use although the model needs them.
        changed: weights that running the model changed.
        unlike: raw images and texts that the two sides preprocess differently.
        quantised: by key, how a weight is quantised that is the file's to within a step.
        tensors: by the key of a weight that is quantised, its name in the program.
        levels: by that key, how many different values it can have.
        rounded: by the key of a weight that is stored in fewer bits than the file's, its dtype.
        pinned: number of weights with the fingerprints of a pin.
    """

    weights: int | None
    doubts: Sequence[str] = ()
    differing: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, tuple[int | None, int]] = field(default_factory=dict)
    unused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    changed: Sequence[str] = ()
    failures: Sequence[str] = ()
    unlike: Sequence[str] = ()
    quantised: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    levels: Mapping[str, int] = field(default_factory=dict)
    rounded: Mapping[str, str] = field(default_factory=dict)
    pinned: int = 0


def integrity(cases: Sequence[Case], evidence: Evidence) -> GateResult:
    """Judge that the candidate is complete, and not the reference itself.

    Passes when the candidate is what its name says, and not the reference; its weights are the
    file's bit for bit, where they can be compared, all are used, and running changes none; integer
    buffers fit the architecture; both sides make the same pixels and ids of raw inputs; and both
    have every output of `OUTPUTS` for every batch, of the same shape and dtype, not empty, finite.
    """
    outputs = [problem for case in cases for problem in _output_problems(case)]
    problems = [
        *evidence.doubts,
        *_weight_problems(evidence),
        *evidence.unlike[:_NAMED],
        *evidence.failures[:1],
        *([] if evidence.failures else outputs[:_NAMED]),
        *([] if cases else ["nothing was run"]),
    ]
    unused = {key for keys in evidence.unused.values() for key in keys}
    weights = {"compared": evidence.weights or 0, "differing": len(evidence.differing)}
    kinds = Counter(evidence.quantised.values())
    figures: dict[str, Mapping[str, float | int | str]] = {
        "weights": {**weights, "unused": len(unused), "changed": len(evidence.changed)},
        "runs": {"batches": len(cases), "failed": len(evidence.failures)},
    }
    if kinds:
        figures["quantised"] = dict(kinds)
    if problems:
        return GateResult(
            name="integrity",
            passed=False,
            message="; ".join(problems),
            figures=figures,
            margin=float("inf"),
        )
    count = len(expected_outputs(cases))
    given = "the one output" if count == 1 else f"all {count} outputs"
    message = f"{given} present, finite, and of the right shape and dtype"
    for dtype, number in Counter(evidence.rounded.values()).most_common():
        message = f"{counted(number, 'weight')} correctly rounded to {dtype}; {message}"
    if kinds:
        told = ", ".join(f"{count} as {how}" for how, count in kinds.most_common())
        message = f"{counted(kinds.total(), 'weight')} quantised, within a step: {told}; {message}"
    if evidence.pinned:
        message = f"{counted(evidence.pinned, 'weight')} as in the pinned model; {message}"
    if evidence.weights is not None:
        message = f"{counted(evidence.weights, 'weight')} bit for bit those of the file; {message}"
    return GateResult(name="integrity", passed=True, message=message, figures=figures)


def _weight_problems(evidence: Evidence) -> list[str]:
    problems = [f"{key}: {reason}" for key, reason in list(evidence.differing.items())[:_NAMED]]
    if len(evidence.differing) > _NAMED:
        problems.append(f"{len(evidence.differing) - _NAMED} more weights differ")
    if evidence.weights == 0:
        problems.append("no weights were compared")
    for method, keys in evidence.unused.items():
        if keys:
            have = counted(len(keys), "weight has", "weights have")
            problems.append(f"{have} no effect on {method}: {_listed(keys)}")
    if evidence.changed:
        problems.append(
            f"running the model changed {counted(len(evidence.changed), 'weight')}: "
            f"{_listed(evidence.changed)}"
        )
    for name, (found, implied) in evidence.buffers.items():
        if found is not None and found != implied:
            problems.append(f"{name} is {found}, and the weights imply {implied}")
    return problems


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _output_problems(case: Case) -> list[str]:
    problems = []
    for name in expected_outputs([case]):
        sides = {"candidate": case.candidate, "reference": case.reference}
        absent = [side for side, outputs in sides.items() if name not in outputs]
        if absent:
            problems.append(f"{name} is missing from the {' and the '.join(absent)}")
            continue
        mine, other = case.candidate[name], case.reference[name]
        if mine.shape != other.shape:
            problems.append(f"{name} has shape {mine.shape} in place of {other.shape}")
        wanted = case.dtype or str(other.dtype)
        if str(mine.dtype) != wanted:
            problems.append(f"{name} has dtype {mine.dtype} in place of {wanted}")
        if mine.size == 0:
            problems.append(f"{name} is empty")
        eager = eager_not_finite(case, [name])
        if eager:
            problems.append(eager)
        elif place := where_not_finite(case, name, mine):
            problems.append(f"{name} of the candidate is not finite in {place}")
    return problems
