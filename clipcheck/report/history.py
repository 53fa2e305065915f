"""Render the changes between two runs as text and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from clipcheck.gates.result import GateResult
from clipcheck.report.cells import wrapped
from clipcheck.report.phrases import one_line
from clipcheck.results.document import to_json
from clipcheck.results.history import Compared, Difference, GateChange, Outcome
from clipcheck.results.judgement import Record
from clipcheck.system.figures import counted, of_limit

SCHEMA = 1
"""Version of the document's schema."""


_ORDER: tuple[Outcome, ...] = (
    "new failure",
    "newly unjudged",
    "fixed",
    "still failing",
    "still unjudged",
    "only in new",
    "only in old",
    "passes as before",
)


def render(difference: Difference) -> str:
    """Render the changes of the environment, a block for each checkpoint that changed or does not
    pass (those that got worse first), and the verdict. Ends without a newline."""
    blocks = [*_environment(difference)]
    for outcome in _ORDER:
        blocks += [
            block
            for each in difference.compared
            if each.outcome == outcome and (block := _block(each))
        ]
    return "\n\n".join([*blocks, verdict(difference)])


def verdict(difference: Difference) -> str:
    """Return the verdict, the last line."""
    counts = Counter(each.outcome for each in difference.compared)
    shrunk = sum(
        any(gate.change == "shrunk" for gate in each.gates) for each in difference.compared
    )
    parts = [_count_text(counts[outcome], outcome) for outcome in _ORDER if counts[outcome]]
    parts += [f"margins shrank in {shrunk}"] if shrunk else []
    return f"{'WORSE' if difference.worse else 'NOT WORSE'}: {', '.join(parts)}."


def _count_text(number: int, outcome: Outcome) -> str:
    several = {"new failure": "new failures", "passes as before": "pass as before"}
    return counted(number, outcome, several.get(outcome, outcome))


def render_json(difference: Difference) -> str:
    """Render the JSON document. Ends with a newline. A margin beyond any limit is null."""
    document = {
        "schema": SCHEMA,
        "worse": difference.worse,
        "old": difference.old.source,
        "new": difference.new.source,
        "versions": [_change(*each) for each in difference.versions],
        "results": [_entry(each) for each in difference.compared],
    }
    return to_json(document)


def _environment(difference: Difference) -> Iterator[str]:
    moved = [
        f"  {one_line(name)} {one_line(old or 'not there')} -> {one_line(new or 'not there')}"
        for name, old, new in difference.versions
    ]
    if moved:
        yield "\n".join(["versions and machine", *moved])


def _block(compared: Compared) -> str:
    """Render the block of a checkpoint; empty if it passes and nothing changed."""
    lines = [
        *(f"  {name} changed: {old[:16]} -> {new[:16]}" for name, old, new in compared.conditions),
        *(line for gate in compared.gates for line in _gate(gate)),
    ]
    new = compared.new
    if new is not None and new.error is not None:
        lines += wrapped(one_line(new.error), "  ")
    elif new is not None and (compared.old is None or compared.old.state == "unjudged"):
        lines += [line for gate in new.gates if not gate.passed for line in _failure(gate)]
    if compared.outcome == "passes as before" and not lines:
        return ""
    return "\n".join([f"{compared.outcome}: {one_line(compared.title)}", *lines])


def _gate(moved: GateChange) -> list[str]:
    name = one_line(moved.name)
    if moved.change == "disappeared":
        measured = f": {_found(moved.new)}" if moved.new else ""
        return [f"  {name}: no longer judged{measured}"]
    assert moved.new is not None  # noqa: S101 - for mypy: nothing else has no newer result
    if moved.change == "appeared":
        judged = f"  {name}: not judged before"
        return [judged, *([] if moved.new.passed else _failure(moved.new))]
    assert moved.old is not None  # noqa: S101 - for mypy: as above
    moves = {"shrunk": "nearer to its limit: ", "grown": "further from its limit: "}
    line = f"  {name}: {moves.get(moved.change, '')}{_found(moved.old)} -> {_found(moved.new)}"
    failed = moved.change == "failed"
    return [line, *(wrapped(one_line(moved.new.message), "    ") if failed else [])]


def _failure(gate: GateResult) -> list[str]:
    return [f"  {one_line(gate.name)}: {_found(gate)}", *wrapped(one_line(gate.message), "    ")]


def _found(gate: GateResult) -> str:
    word = {"passed": "passed", "failed": "FAILED", "measured": "measured"}[gate.state]
    return f"{word} {of_limit(gate.margin)}".rstrip()


def _change(name: str, old: object, new: object) -> dict[str, object]:
    return {"name": name, "old": old, "new": new}


def _entry(compared: Compared) -> dict[str, Any]:
    known = compared.new or compared.old
    assert known is not None  # noqa: S101 - for mypy: at least one of the two exists
    dtypes = [each.dtype for each in (compared.new, compared.old) if each and each.dtype]
    return {
        "checkpoint": known.checkpoint,
        "backend": known.backend,
        "device": known.device,
        "dtype": dtypes[0] if dtypes else None,
        "outcome": compared.outcome,
        "old": _state(compared.old),
        "new": _state(compared.new),
        "conditions": [_change(*each) for each in compared.conditions],
        "gates": [
            {"name": g.name, "change": g.change, "old": _side(g.old), "new": _side(g.new)}
            for g in compared.gates
        ],
    }


def _state(entry: Record | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {"checkpoint": entry.checkpoint, "state": entry.state, "error": entry.error}


def _side(gate: GateResult | None) -> dict[str, Any] | None:
    if gate is None:
        return None
    return {"passed": gate.passed, "judged": gate.judged, "margin": gate.margin}
