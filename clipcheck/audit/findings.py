"""Findings of an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipcheck.gates.localisation import Localisation


@dataclass(frozen=True)
class Finding:
    """Verdict of the gates on one variant, in one architecture, with one set of weights.

    Attributes:
        clean: whether it has to pass.
        weights: their kind.
        dtype: what both sides computed in.
        gate: the gate that failed by most, or None.
        margin: how many times what is allowed that was; for a variant that passes, how much of
            what is allowed.
        classic_caught: whether the classic assertion fails.
        greatest: the greatest ratio to the eager model's error under each limit, by its name in
            `clipcheck.gates.tolerances.Limits`.
        localisation: where it departs, if that was asked for of a fault.
        localised: whether it departs where the fault was planted, and nowhere else; nowhere at all
            where the fault shows on no ordinary input.
    """

    name: str
    family: str
    reason: str
    clean: bool
    architecture: str
    seed: int
    weights: str
    dtype: str
    gate: str | None
    margin: float
    classic_caught: bool
    backend: str
    greatest: Mapping[str, float] = field(default_factory=dict)
    localisation: Localisation | None = None
    localised: bool = False

    @property
    def caught(self) -> bool:
        """Whether any gate failed."""
        return self.gate is not None

    @property
    def hidden(self) -> bool:
        """Whether a place was looked for, and the fault rightly showed nowhere."""
        found = self.localisation
        return self.localised and found is not None and not found.found

    @property
    def right(self) -> bool:
        """Whether a fault was caught, or a clean variant passed."""
        return self.caught != self.clean


@dataclass(frozen=True)
class Audit:
    """Findings of an audit.

    Attributes:
        findings: in the order of the backends, then of the catalogue.
        left_out: by backend that cannot run on this machine, why.
    """

    findings: Sequence[Finding]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every fault was caught, and every clean variant passed; where places were asked
        for, whether all are right as well."""
        return (
            bool(self.findings)
            and all(finding.right for finding in self.findings)
            and all(finding.localised for finding in self.sought)
        )

    @property
    def sought(self) -> Sequence[Finding]:
        """Findings on faults whose place was looked for."""
        return [finding for finding in self.findings if finding.localisation is not None]

    @property
    def faults(self) -> Sequence[Finding]:
        """Findings on faults."""
        return [finding for finding in self.findings if not finding.clean]

    @property
    def clean(self) -> Sequence[Finding]:
        """Findings on clean variants."""
        return [finding for finding in self.findings if finding.clean]
