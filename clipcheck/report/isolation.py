"""Where a file's own code ran, for people."""

from __future__ import annotations


def told(isolation: tuple[str, ...] | None) -> str:
    """In a line; nothing where none of the file's own code ran.

    Args:
        isolation: see `clipcheck.results.judgement.Judgement.isolation`.
    """
    if isolation is None:
        return ""
    if not isolation:
        return "its own code ran in this process, with all rights"
    return f"its own code ran apart: {'; '.join(isolation)}"
