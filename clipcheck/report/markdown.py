"""Render a result as Markdown, for the summary of a job on GitHub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from clipcheck.gates.result import GateResult
from clipcheck.report.phrases import commands, evidence, one_line
from clipcheck.report.verdict import verdict, worst_first
from clipcheck.results.judgement import Judgement, LeftOut, Result
from clipcheck.system.figures import of_limit

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
"""Entities, because not every renderer lets a backslash escape a bar in a table."""


def render(result: Result) -> str:
    """Render the verdict, a table, and the evidence of failures. Ends with a newline."""
    return "".join(parts(result))


def parts(result: Result) -> list[str]:
    """Return the document in parts that may be cut off from the end: verdict, head and rows of the
    table, and the evidence of each judgement that did not pass."""
    sign = "✓" if result.passed else "✗"
    names = list(dict.fromkeys(gate.name for each in result.judgements for gate in each.gates))
    head = ["checkpoint", "backend", "device", "dtype", *names]
    return [
        f"### {sign} clipcheck: {escaped(verdict(result))}\n",
        f"\n{_row(head)}{_row(['---'] * len(head))}",
        *(_row(_cells(judgement, names)) for judgement in result.judgements),
        *(_details(each) for each in worst_first(result.judgements) if not each.passed),
        *_left_out(result.left_out),
        *([f"\n{escaped(str(result.configuration))}\n"] if result.configuration.options else []),
    ]


def _left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    rows = dict.fromkeys(f"{each.backend}: {each.reason}" for each in left_out)
    if rows:
        yield "\nLeft out:\n\n" + "".join(f"- {escaped(row)}\n" for row in rows)


def escaped(text: str) -> str:
    """Put the text on one line and escape Markdown."""
    plain = re.sub(r"[\\`*_~\[\]$#]", r"\\\g<0>", one_line(text))
    return re.sub(r"[&<>|]", lambda found: _ENTITIES[found[0]], plain)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _cells(judgement: Judgement, names: Sequence[str]) -> list[str]:
    found = {gate.name: gate for gate in judgement.gates}
    subject = (judgement.checkpoint, judgement.backend, judgement.device, judgement.dtype or "")
    return [*map(escaped, subject), *(_verdict(found.get(name)) for name in names)]


def _verdict(gate: GateResult | None) -> str:
    if gate is None:
        return "not judged"
    sign = {"passed": "✓", "failed": "✗", "measured": "measured"}[gate.state]
    return f"{sign} {of_limit(gate.margin)}".rstrip()


def _details(judgement: Judgement) -> str:
    items = "".join(f"- {item}\n" for item in _items(judgement))
    return f"\n**{escaped(judgement.title)}**\n\n{items}{_fenced(commands(judgement))}"


def _items(judgement: Judgement) -> Iterator[str]:
    if judgement.error is not None:
        yield f"could not be judged: {escaped(judgement.error)}"
    for gate in judgement.gates:
        if not gate.passed:
            yield f"**{gate.name}**: {escaped(gate.message)}"
    yield from map(escaped, evidence(judgement))


def _fenced(lines: Sequence[str]) -> str:
    """Return a block of code, with a fence longer than any inside; empty without lines."""
    if not lines:
        return ""
    code = "\n".join(map(one_line, lines))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"\n{fence}\n{code}\n{fence}\n"
