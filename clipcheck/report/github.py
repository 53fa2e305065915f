"""Write the summary of a job on GitHub Actions, and its annotations."""

from __future__ import annotations

import os
from pathlib import Path

from clipcheck.report import markdown
from clipcheck.report.annotations import render
from clipcheck.results.judgement import Result

MOST_BYTES = 1 << 20
"""Size limit of a step's summary: GitHub does not show a larger one."""

LEFT_OUT = "\nThe rest is left out: GitHub limits a summary to 1 MiB.\n"


def annotate(result: Result) -> list[str]:
    """Return a line for each judgement that did not pass; none outside GitHub Actions."""
    return render(result) if _on_github() else []


def summarise(result: Result) -> str:
    """Add the result to the summary of the step; do nothing outside GitHub Actions.

    Returns:
        The error of writing as a sentence, or an empty string. It is not raised: it must not
        change the verdict.
    """
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if not target or not _on_github():
        return ""
    try:
        with Path(target).open("ab") as file:
            text = _fit_into(markdown.parts(result), MOST_BYTES - file.tell())
            file.write(text)
    except OSError as error:
        return f"{target}: the summary cannot be written ({error.strerror or error})."
    return "" if text else f"{target}: the summary is left out because the file is full."


def _on_github() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _fit_into(parts: list[str], room: int) -> bytes:
    """Encode as many parts as fit, and add a note if some are left out."""
    encoded = [part.encode() for part in parts]
    if sum(map(len, encoded)) <= room:
        return b"".join(encoded)
    taken, note = b"", LEFT_OUT.encode()
    for part in encoded:
        if len(taken) + len(part) + len(note) > room:
            break
        taken += part
    return taken + note if taken else b""
