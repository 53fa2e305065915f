"""Render an audit as text and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.findings import Audit, Finding
from clipcheck.report.tables import table
from clipcheck.results.document import writable

SCHEMA = 1


def render_catalogue(variants: Sequence[Variant]) -> str:
    """Return a line for each variant. Ends without a newline."""
    parts = {"faults (must be caught)": False, "clean variants (must pass)": True}
    blocks = []
    for title, clean in parts.items():
        chosen = [each for each in variants if each.clean == clean]
        rows = table([(each.name, each.reason) for each in chosen], indent=2)
        blocks.append(f"{len(chosen)} {title}:\n{rows.plain}")
    return "\n\n".join(blocks)


def render(audit: Audit) -> str:
    """Return a row for each variant and architecture, and a summary. Ends without a newline."""
    return "\n".join(
        [
            "x limit: the figure divided by its limit; the least of a fault, the greatest of a",
            "clean variant. classic: how often the classic assertion alone caught it.",
            "",
            _rows(audit.faults, "fault"),
            "",
            _rows(audit.clean, "clean variant"),
            "",
            *_places(audit.sought),
            *_left_out(audit),
            summary(audit),
        ]
    )


def summary(audit: Audit) -> str:
    """Return the summary: the verdict, and what was wrong."""
    faults, clean = audit.faults, audit.clean
    caught = sum(finding.caught for finding in faults)
    classic = sum(finding.classic_caught for finding in faults)
    passed = sum(not finding.caught for finding in clean)
    failed = (finding for finding in audit.findings if not finding.right)
    wrong = sorted({f"{each.name} in {each.architecture} ({each.backend})" for each in failed})
    line = (
        f"{'PASSED' if audit.passed else 'FAILED'}: {caught} of {len(faults)} faults caught (the "
        f"classic assertion: {classic}); {passed} of {len(clean)} clean variants passed."
    )
    sought = audit.sought
    if sought:
        line += f" {_localised_text(sought)}"
    astray = [f"{f.name} in {f.architecture}" for f in sought if not f.localised]
    lines = [line]
    if wrong:
        lines.append(f"Wrong: {', '.join(wrong)}.")
    if astray:
        lines.append(f"Localised elsewhere: {', '.join(sorted(set(astray)))}.")
    return "\n".join(lines)


def _localised_text(sought: Sequence[Finding]) -> str:
    """Say how many faults were localised, of those that can be."""
    showing = [finding for finding in sought if not finding.hidden]
    hits, hidden = sum(finding.localised for finding in showing), len(sought) - len(showing)
    apart = f"; {hidden} {'does' if hidden == 1 else 'do'} not show there" if hidden else ""
    return (
        f"{hits} of {len(showing)} faults that show on ordinary inputs were localised to the "
        f"module they were planted in{apart}."
    )


def render_json(audit: Audit) -> str:
    """Render the JSON document, schema 1. Ends with a newline."""
    document = {
        "schema": SCHEMA,
        "passed": audit.passed,
        "left_out": dict(audit.left_out),
        "faults": [_entry(finding) for finding in audit.faults],
        "clean": [_entry(finding) for finding in audit.clean],
    }
    return json.dumps(writable(document), indent=2, allow_nan=False) + "\n"


def _rows(findings: Sequence[Finding], kind: str) -> str:
    rows = []
    for group in _grouped(findings):
        one = group[0]
        gates = ",".join(sorted({finding.gate or "-" for finding in group}))
        classic = f"{sum(finding.classic_caught for finding in group)}/{len(group)}"
        rows.append((one.name, one.architecture, one.backend, gates, _margin(group), classic))
    heads = (kind, "in", "backend", "gate", "x limit", "classic")
    return table(rows, heads=heads, right=[4]).plain


def _places(sought: Sequence[Finding]) -> list[str]:
    """List where each fault departs first, in each tower."""
    if not sought:
        return []
    rows = []
    for finding in sought:
        places = finding.localisation.found if finding.localisation else ()
        where = ", ".join(f"{p.module}{f' ({p.part})' if p.part else ''}" for p in places)
        name = f"{' ' if finding.localised else 'X'} {finding.name}"
        rows.append((name, finding.architecture, where or "nowhere"))
    return [
        "Where each fault departs first; those marked with an X are not where it was planted.",
        table(rows).plain,
        "",
    ]


def _left_out(audit: Audit) -> list[str]:
    """List the backends that were left out, and why."""
    rows = [f"{name}: left out ({reason})" for name, reason in audit.left_out.items()]
    return [*rows, ""] if rows else []


def _grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Group the findings by backend, variant and architecture."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        place = (finding.backend, finding.name, finding.architecture)
        groups.setdefault(place, []).append(finding)
    return list(groups.values())


def _margin(group: Sequence[Finding]) -> str:
    """Write the margin that was nearest to a wrong verdict: the least of a fault, else the
    greatest."""
    choose = max if group[0].clean else min
    margin = choose(finding.margin for finding in group)
    if margin == float("inf"):
        return "not finite"
    return f"{margin:,.2g}" if margin < 10 else f"{margin:,.0f}"


_SUBJECT = ("name", "reason", "architecture", "backend", "seed", "weights", "dtype")
_FIGURES = ("gate", "margin", "greatest")


def _entry(finding: Finding) -> dict[str, Any]:
    common = {name: getattr(finding, name) for name in (*_SUBJECT, *_FIGURES)}
    if finding.clean:
        return {**common, "passed": not finding.caught}
    return {
        **common,
        "family": finding.family,
        "caught": finding.caught,
        "classic_caught": finding.classic_caught,
        "localised": finding.localised if finding.localisation else None,
        "hidden": finding.hidden,
        "places": [
            {"tower": place.tower, "module": place.module, "part": place.part}
            for place in (finding.localisation.found if finding.localisation else ())
        ],
    }
