"""Where a file's own code ran, for people."""

from __future__ import annotations


def told(isolation: tuple[str, ...] | None) -> str:
    """Say it in a line; nothing where none of the file's own code ran.

    Args:
        isolation: see `clipcheck.results.judgement.Judgement.isolation`.
    """
    if isolation is None:
        return ""
    if not isolation:
        return "unsandboxed: its own code ran in this process"
    return f"sandboxed: {'; '.join(isolation)}"
