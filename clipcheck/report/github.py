"""Output of a run on GitHub Actions: a summary of the job, and annotations."""

from __future__ import annotations

import os
from pathlib import Path

from clipcheck.report import markdown
from clipcheck.report.annotations import render
from clipcheck.results.judgement import Result

MOST_BYTES = 1 << 20
"""Size limit of a step's summary: GitHub shows nothing of a larger one."""

LEFT_OUT = "\nThe rest is left out: GitHub takes 1 MiB of a summary.\n"


def annotate(result: Result) -> list[str]:
    """The lines to print, one for each judgement that did not pass; none elsewhere than there."""
    return render(result) if _there() else []


def summarise(result: Result) -> str:
    """Add the result to the summary of the step; elsewhere than there do nothing.

    Returns:
        What went wrong, as a sentence, or nothing: a verdict does not depend on its summary.
    """
    target = os.environ.get("GITHUB_STEP_SUMMARY")
    if not target or not _there():
        return ""
    try:
        with Path(target).open("ab") as file:
            text = _fitting(markdown.parts(result), MOST_BYTES - file.tell())
            file.write(text)
    except OSError as error:
        return f"{target}: the summary cannot be written ({error.strerror or error})."
    return "" if text else f"{target}: the summary is left out, for the file is full."


def _there() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _fitting(parts: list[str], room: int) -> bytes:
    """Encode as many of the parts as there is room for, with a note where some are left out."""
    encoded = [part.encode() for part in parts]
    if sum(map(len, encoded)) <= room:
        return b"".join(encoded)
    taken, note = b"", LEFT_OUT.encode()
    for part in encoded:
        if len(taken) + len(part) + len(note) > room:
            break
        taken += part
    return taken + note if taken else b""
