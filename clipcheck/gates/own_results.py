"""Results of the gates on the user's own data, apart from the other inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clipcheck.gates.budget import Sample
from clipcheck.gates.result import Figures, GateResult


@dataclass(frozen=True)
class Addition:
    """Part of a gate's result that comes from the user's data.

    Attributes:
        told: a phrase, or an empty string.
        figures: see `GateResult.figures`.
        margin: see `GateResult.margin`; it fails above 1.
        judged: whether the user's data could fail.
    """

    told: str
    figures: Figures
    margin: float
    judged: bool = True


@dataclass(frozen=True)
class OwnResults:
    """Results over the user's data.

    Attributes:
        additions: by the name of a gate.
        samples: by kind, the figures of each row, for the gate ``budget``.
    """

    additions: Mapping[str, Addition]
    samples: Mapping[str, Sample]

    def add_to(self, gate: GateResult) -> GateResult:
        """Add the user's data to the result of a gate; one that could not compare stays as it is,
        and so does ``budget``, which takes the samples."""
        added = self.additions.get(gate.name)
        return gate if added is None or not gate.margin < float("inf") else _joined(gate, added)


def _joined(gate: GateResult, added: Addition) -> GateResult:
    passed = added.margin <= 1
    if not passed and gate.passed:
        message = added.told
    else:
        message = "; ".join(each for each in (gate.message, added.told) if each)
    return replace(
        gate,
        passed=gate.passed and passed,
        message=message,
        figures={**gate.figures, **added.figures},
        # A margin of what was only measured may be beyond the limit.
        margin=max(gate.margin, added.margin)
        if gate.judged == added.judged
        else (added.margin if added.judged else gate.margin),
        judged=gate.judged or added.judged,
    )
