"""Findings of an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipcheck.gates.localisation import Localisation


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Verdict of the gates on one variant, in one architecture, with one set of weights.

    Attributes:
        clean: whether it is a clean variant, which has to pass.
        weights: kind of weights.
        dtype: dtype in which both sides computed.
        gate: the gate with the largest margin of those that failed, or None.
        margin: the largest error of all gates, as a multiple of its limit.
        classic_caught: whether the classic assertion fails.
        greatest: the largest ratio to the eager model's error for each limit, by its name in
            `clipcheck.gates.tolerances.Limits`.
        localisation: where it departs, if places of faults were looked for.
        localised: whether it departs where the fault was planted, and nowhere else; or nowhere,
            if ordinary inputs need not show the fault.
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
        """Whether a place was looked for, and the fault correctly showed nowhere."""
        found = self.localisation
        return self.localised and found is not None and not found.found

    @property
    def right(self) -> bool:
        """Whether the verdict is correct: a fault was caught, or a clean variant passed."""
        return self.caught != self.clean


@dataclass(frozen=True)
class Audit:
    """Findings of an audit.

    Attributes:
        findings: ordered by backend, then as in the catalogue.
        left_out: the backends that cannot run on this machine, each with the reason.
    """

    findings: Sequence[Finding]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every fault was caught and every clean variant passed, and, if places were looked
        for, whether all are correct."""
        return (
            bool(self.findings)
            and all(finding.right for finding in self.findings)
            and all(finding.localised for finding in self.sought)
        )

    @property
    def sought(self) -> Sequence[Finding]:
        """Findings of faults whose place was looked for."""
        return [finding for finding in self.findings if finding.localisation is not None]

    @property
    def faults(self) -> Sequence[Finding]:
        """Findings of faults."""
        return [finding for finding in self.findings if not finding.clean]

    @property
    def clean(self) -> Sequence[Finding]:
        """Findings of clean variants."""
        return [finding for finding in self.findings if finding.clean]
