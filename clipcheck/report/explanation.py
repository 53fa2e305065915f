"""Render the explanation of a gate as text."""

from __future__ import annotations

from collections.abc import Sequence

from clipcheck.gates.registry import Gate
from clipcheck.gates.tolerances import LIMITS
from clipcheck.report.cells import wrapped
from clipcheck.report.tables import table

_INDENT = "  "


def listing(gates: Sequence[Gate]) -> str:
    """Return a line for each gate. Ends without a newline."""
    return table([(gate.name, gate.title) for gate in gates], wraps=True).plain


def render(gate: Gate) -> str:
    """Return the full explanation of a gate. Ends without a newline."""
    parts = {
        "Passes when": gate.passes_when,
        "Why, and what its limit is based on": gate.explanation,
        "Judges": _scope(gate),
        "If it fails": gate.remedy,
    }
    lines = wrapped(gate.title, f"{gate.name}: ")
    for title, text in parts.items():
        lines += ["", title, *wrapped(text, _INDENT)]
    return "\n".join(lines)


def _scope(gate: Gate) -> str:
    dtypes = "every dtype" if gate.dtypes == tuple(LIMITS) else " and ".join(gate.dtypes)
    modules = "; archives and programs that show their modules" if gate.needs_modules else ""
    reference = "; only with --reference" if gate.needs_reference else ""
    budget = "; only with --budget" if gate.needs_budget else ""
    return f"{dtypes}{modules}{reference}{budget}."
