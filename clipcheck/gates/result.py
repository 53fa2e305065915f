"""Inputs and results of gates. Outputs are numpy arrays by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from clipcheck.gates.metrics import Array, unit

OUTPUTS = {
    "image_features": ("image", "component"),
    "text_features": ("prompt", "component"),
    "logits_per_image": ("image", "prompt"),
    "logits_per_text": ("prompt", "image"),
}
"""Every output of a model, with the names of its two dimensions. Features are not normalised."""

MEANT = {
    "image_features": "image features",
    "text_features": "text features",
    "logits_per_image": "logits per image",
    "logits_per_text": "logits per text",
}
"""Name of each output in messages."""

LOGITS = ("logits_per_image", "logits_per_text")

ENCODERS = {"encode_image": "image_features", "encode_text": "text_features"}
"""The output of each encoder of a model."""

FEATURES = tuple(ENCODERS.values())

Outputs = Mapping[str, Array]
Figures = Mapping[str, Mapping[str, float | int | str]]
GateState = Literal["passed", "failed", "measured"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """The outputs of candidate and reference for one batch.

    Attributes:
        candidate: outputs of the candidate.
        reference: outputs of the eager model, in the same dtype on the same device.
        exact: outputs of the eager model in float64.
        rows: by ``image`` and ``prompt``, a description of each row.
        first_rows: by ``image`` and ``prompt``, the number of rows in earlier batches.
        absent: outputs that the candidate does not have by its own signature.
        dtype: of the candidate's outputs, if ``reference`` has another; else empty.
    """

    candidate: Outputs
    reference: Outputs
    exact: Outputs
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    first_rows: Mapping[str, int] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    dtype: str = ""

    def where(self, output: str, index: Sequence[int]) -> str:
        """Describe a place in an output: ``image 3 (black), prompt 5 (77 tokens)``."""
        dimensions = zip(OUTPUTS[output], index, strict=False)
        return ", ".join(self.place(kind, position) for kind, position in dimensions)

    def place(self, kind: str, position: int) -> str:
        """Describe a row of a kind, ``image`` or ``prompt``, by its number in all batches."""
        number = self.first_rows.get(kind, 0) + position
        known = self.rows.get(kind, ())
        described = f" ({known[position]})" if position < len(known) else ""
        return f"{kind} {number}{described}"


def in_form(outputs: Outputs, normalised: Collection[str]) -> Outputs:
    """Return the outputs as a candidate gives them.

    Args:
        outputs: of the eager model.
        normalised: the features that the candidate gives with the length 1.
    """
    return {name: unit(array) if name in normalised else array for name, array in outputs.items()}


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Result of a gate.

    Attributes:
        message: one line.
        figures: by output, or by another name.
        margin: greatest figure divided by its limit: at most 1 if it was judged and passed,
            infinite if something is missing or not finite, 0 if nothing is measured.
        judged: whether it could fail; else it is only measured, and passes.

    Raises:
        ValueError: it failed, but was not judged.
    """

    name: str
    passed: bool
    message: str
    figures: Figures = field(default_factory=dict)
    margin: float = 0.0
    judged: bool = True

    def __post_init__(self) -> None:
        if not (self.judged or self.passed):
            raise ValueError(f"{self.name} failed, but judged is false")

    @property
    def state(self) -> GateState:
        """Whether it passed, failed, or was only measured."""
        if not self.judged:
            return "measured"
        return "passed" if self.passed else "failed"


def expected_outputs(
    cases: Sequence[Case], names: Sequence[str] = tuple(OUTPUTS)
) -> tuple[str, ...]:
    """Return the outputs that the candidate must have, of these."""
    absent = frozenset[str]().union(*(case.absent for case in cases))
    return tuple(name for name in names if name not in absent)


def unusable(cases: Sequence[Case], names: Sequence[str] = tuple(OUTPUTS)) -> str:
    """Return why these outputs cannot be compared, or an empty string."""
    if not cases:
        return "nothing was run, so nothing can be compared"
    names = expected_outputs(cases, names)
    return next((problem for case in cases for problem in _problems(case, names)), "")


def not_finite(cases: Sequence[Case], names: Sequence[str]) -> str:
    """Say which of these outputs of the candidate is not finite, or return an empty string."""
    for case in cases:
        for name in expected_outputs([case], names):
            place = where_not_finite(case, name, case.candidate[name])
            if place:
                return f"{name} of the candidate is not finite in {place}"
    return ""


def eager_not_finite(case: Case, names: Sequence[str] = tuple(OUTPUTS)) -> str:
    """Say which output of the eager model itself is not finite, so nothing can be compared
    with it, or return an empty string."""
    for name in names:
        for outputs, in_float64 in ((case.reference, ""), (case.exact, " in float64")):
            place = where_not_finite(case, name, outputs[name])
            if place:
                return f"the eager model itself is not finite{in_float64}: {MEANT[name]} of {place}"
    return ""


def where_not_finite(case: Case, name: str, values: Array) -> str:
    """Describe the first row of an output that is not finite, or return an empty string."""
    bad = np.argwhere(~np.isfinite(values))
    return case.where(name, [int(bad[0][0])]) if len(bad) else ""


def _problems(case: Case, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name not in case.candidate or name not in case.reference:
            yield f"{name} is missing, so nothing can be compared"
        elif case.candidate[name].shape != case.reference[name].shape:
            yield f"{name} has different shapes, so nothing can be compared"
        elif case.candidate[name].size == 0:
            yield f"{name} is empty, so nothing can be compared"
    if all(name in case.reference for name in names):
        yield from filter(None, [eager_not_finite(case, names)])
