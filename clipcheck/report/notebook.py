"""Render a result as a table for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from clipcheck.report.cells import visible
from clipcheck.report.gate_table import cell
from clipcheck.report.verdict import verdict
from clipcheck.results.judgement import Judgement, Result


def render(result: Result) -> str:
    """Return an HTML fragment: the verdict, and a row for each run with a cell for each gate."""
    judgements = result.judgements
    names = list(dict.fromkeys(gate.name for each in judgements for gate in each.gates))
    head = _row("th", ["checkpoint", "backend", "device", "dtype", *names])
    rows = [_row("td", _cells(each, names)) for each in judgements]
    table = f"<table>{head}{''.join(rows)}</table>" if judgements else ""
    return f"<p><strong>{_safe(verdict(result))}</strong></p>{table}"


def _cells(judgement: Judgement, names: Sequence[str]) -> list[str]:
    found = {gate.name: gate for gate in judgement.gates}
    how = [judgement.checkpoint, judgement.backend, judgement.device, judgement.dtype or ""]
    if judgement.error is not None:
        return [*how, f"not judged: {judgement.error}"]
    return [*how, *(cell(found.get(name)) for name in names)]


def _row(tag: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_safe(text)}</{tag}>' for text in texts)}</tr>"


def _safe(text: str) -> str:
    return escape(visible(text))
