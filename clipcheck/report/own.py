"""Describe the user's own images and prompts."""

from __future__ import annotations

from collections.abc import Iterator

from clipcheck.gates.own import OwnFound, OwnRow
from clipcheck.system.figures import counted, multiple, number

_MOST = 3
"""Rows to name on a terminal."""


def summary(found: OwnFound) -> list[str]:
    """Return what ran, and what did not run as it is, as phrases."""
    ran = [
        counted(count, what)
        for count, what in ((found.images, "own image"), (found.prompts, "own prompt"))
        if count
    ]
    told = [f"{' and '.join(ran) or 'no own data'} compared"]
    if found.skipped:
        names = ", ".join(found.skipped_files)
        more = ", ..." if found.skipped > len(found.skipped_files) else ""
        skipped = counted(found.skipped, "file")
        told.append(f"{skipped} left out, as Pillow cannot read them as images: {names}{more}")
    if found.truncated:
        longer = counted(found.truncated, "prompt is", "prompts are")
        told.append(f"{longer} longer than the model's context, and truncated")
    return told


def worst(found: OwnFound, *, budget: bool) -> Iterator[str]:
    """Yield the worst rows, each with its figure."""
    for row in found.worst[:_MOST]:
        what = row.name if row.kind == "image" else f"prompt on {row.name}"
        yield f"{what}: {figure(row, budget=budget)}"


def figure(row: OwnRow, *, budget: bool) -> str:
    """Write the error of a row, or with a budget its cosine."""
    if budget:
        return f"cosine {row.cosine:.5g}"
    ratio = multiple(row.rmse_ratio) or "not finite"
    return f"error {number(row.rmse)}, {ratio} the eager model's (limit {row.allowed:g}x)"
