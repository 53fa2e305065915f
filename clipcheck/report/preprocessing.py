"""Report how other libraries preprocess and tokenize, in lines of at most 80 cells."""

from __future__ import annotations

from collections.abc import Sequence

from clipcheck.gates.preprocessing import Kind, PreprocessingResult
from clipcheck.report.cells import wrapped
from clipcheck.system.figures import counted

_INDENT = "  "
_DEEPER = "    "

_SHOWN = 3
"""Inputs to show of those that differ for no known reason; the rest are counted."""

_PARTS: dict[Kind, tuple[str, str, str]] = {
    "image": ("preprocessing", "image", "images"),
    "text": ("tokenizing", "text", "texts"),
    "end token": ("end token", "id", "ids"),
}
"""By kind: its name, and the singular and plural of its inputs."""


def lines(results: Sequence[PreprocessingResult]) -> list[str]:
    """Report each result: how many inputs become the same, the known differences, and the first
    inputs that differ for no known reason.

    A known difference is explained once, where it first appears.
    """
    told: set[str] = set()
    return [line for result in results for line in _lines(result, told)]


def headline(result: PreprocessingResult) -> str:
    """Return the first line of a result, not wrapped."""
    part, *nouns = _PARTS[result.kind]
    number = f"{result.same} of {result.compared} {nouns[result.compared != 1]} the same"
    counts = {"as known": result.differing_as_known, "otherwise": len(result.unknown)}
    others = [
        f"{counted(count, 'differs', 'differ')} {how}" for how, count in counts.items() if count
    ]
    if not result.compared:
        number = f"no {nouns[1]} were compared"
    return f"{part} of {_named(result)}: {'; '.join([number, *others])}"


def _lines(result: PreprocessingResult, told: set[str]) -> list[str]:
    found = wrapped(headline(result), rest=_INDENT)
    for name, known in result.known.items():
        found += wrapped(f"{name}: {known.count}, such as {known.example}", f"{_INDENT}known: ")
        if name not in told:
            found += [*wrapped(known.meaning, _DEEPER), *wrapped(known.link, _DEEPER)]
        told.add(name)
    for unknown in result.unknown[:_SHOWN]:
        found += wrapped(f"{unknown.example}: {unknown.unlike.message}", f"{_INDENT}otherwise: ")
    left = len(result.unknown) - _SHOWN
    return [*found, *([f"{_INDENT}otherwise: {left} more"] if left > 0 else [])]


def _named(result: PreprocessingResult) -> str:
    """Return the library, its version, and the variant of its preprocessing."""
    way = result.name.partition(" ")[2]
    return f"{result.version} {way}".rstrip()
