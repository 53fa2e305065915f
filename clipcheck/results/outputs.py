"""The outputs that a judgement compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipcheck.gates.integrity import Evidence
from clipcheck.gates.own_results import OwnResults
from clipcheck.gates.repeatability import Repeat
from clipcheck.gates.result import Case, GateResult


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Outputs that a judgement compared, and what else its gates need.

    Attributes:
        dtype: of both sides.
        scale: exp(logit_scale) of the model.
        error: assumed relative error of a reference without a float64 copy, or None.
        cases: each batch, with all outputs.
        repeats: rows that ran again.
        lengths: prompts of every length.
        sample: the random inputs of the gate ``budget``.
        evidence: what else the gate ``integrity`` judged.
        others: results of the gates that need more than outputs, which no limit changes.
        own: results over the user's own data, of which only figures are kept.
    """

    dtype: str
    scale: float
    error: float | None
    cases: Sequence[Case]
    repeats: Sequence[Repeat]
    lengths: Sequence[Case]
    sample: Sequence[Case]
    evidence: Evidence
    others: tuple[GateResult, ...]
    own: OwnResults | None = None
