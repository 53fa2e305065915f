"""Report where a file's own code ran."""

from __future__ import annotations


def describe(isolation: tuple[str, ...] | None) -> str:
    """Describe in a line where it ran, or return an empty string if no such code ran.

    Args:
        isolation: see `clipcheck.results.judgement.Judgement.isolation`.
    """
    if isolation is None:
        return ""
    if not isolation:
        return "unsandboxed: its own code ran in this process"
    return f"sandboxed: {'; '.join(isolation)}"
