"""The gate ``integrity``: that the comparison is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipcheck.gates.result import (
    Case,
    GateResult,
    eager_not_finite,
    judged,
    where_not_finite,
)
from clipcheck.system.figures import counted

_NAMED = 3
"""Weights that a message names, of those that are wrong; the others are counted."""


@dataclass(frozen=True)
class Evidence:
    """Evidence that `integrity` needs beside the outputs.

    Attributes:
        weights: number of weights of the candidate that were compared with the file's bit for bit;
            None where they are built into it and cannot be told apart any more.
        doubts: what speaks against the candidate being what it is called, or against its being
            another thing than the reference.
        differing: by key, how a weight of the candidate differs from the file's.
        buffers: by name, the integer that the archive holds and the one that the dimensions of
            the weights imply; None where the archive does not have it.
        unused: by method, the weights that its code does not use although the model has to.
        changed: the weights that running the model has changed.
        unlike: raw images and texts that the two sides make other inputs of.
        quantised: by key, how a weight is quantised that is the file's to within a step.
        tensors: by the key of a weight that is quantised, its name in the program.
        levels: by that key, how many different values it can have.
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


def integrity(cases: Sequence[Case], evidence: Evidence) -> GateResult:
    """Two different things, the same weights, all of them used, and all outputs.

    Passes when the candidate is what it is called, and not the reference once more; the weights
    agree bit for bit, where they can be told, all of them take part in what is computed, and
    running changes none; the integer buffers are those that the architecture implies; raw images
    and texts become the same pixels and ids both ways; and every output of `OUTPUTS` is there from
    both for every batch, of the same shape and dtype, not empty and finite.
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
        return GateResult("integrity", False, "; ".join(problems), figures, float("inf"))
    count = len(judged(cases))
    given = "the one output" if count == 1 else f"all {count} outputs"
    message = f"{given} present, finite, and of the right shape and dtype"
    if kinds:
        told = ", ".join(f"{count} as {how}" for how, count in kinds.most_common())
        message = f"{counted(kinds.total(), 'weight')} quantised, within a step: {told}; {message}"
    if evidence.weights is not None:
        message = f"{counted(evidence.weights, 'weight')} bit for bit those of the file; {message}"
    return GateResult("integrity", True, message, figures)


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
    for name in judged([case]):
        sides = {"candidate": case.candidate, "reference": case.reference}
        absent = [side for side, outputs in sides.items() if name not in outputs]
        if absent:
            problems.append(f"{name} is missing from the {' and the '.join(absent)}")
            continue
        mine, other = case.candidate[name], case.reference[name]
        if mine.shape != other.shape:
            problems.append(f"{name} has shape {mine.shape} in place of {other.shape}")
        if mine.dtype != other.dtype:
            problems.append(f"{name} has dtype {mine.dtype} in place of {other.dtype}")
        if mine.size == 0:
            problems.append(f"{name} is empty")
        eager = eager_not_finite(case, [name])
        if eager:
            problems.append(eager)
        elif place := where_not_finite(case, name, mine):
            problems.append(f"{name} of the candidate is not finite in {place}")
    return problems
