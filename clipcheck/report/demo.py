"""Texts of the demo of a planted fault: what was planted, and how to read the report."""

from __future__ import annotations

from rich.text import Text

from clipcheck.audit.faults import Variant
from clipcheck.inputs.examples import listed
from clipcheck.report.cells import command, wrapped
from clipcheck.report.places import named
from clipcheck.report.tables import table
from clipcheck.results.judgement import Judgement


def planted(variant: Variant, architecture: str) -> str:
    """Describe the planted fault, before the check."""
    return "\n".join(
        [
            *wrapped(f"Planted into a {architecture} archive, with seeded weights:"),
            *wrapped(f"{variant.name}: {variant.reason}.", "  "),
        ]
    )


def tour(judgement: Judgement, folder: str, page: str) -> Text:
    """Explain the findings step by step.

    Args:
        judgement: of the archive with the fault.
        folder: of the demo's files.
        page: path of the HTML report.
    """
    failed = [gate.name for gate in judgement.gates if not gate.passed]
    steps = [
        ("1. the verdict", f"not passed: {', '.join(failed)}"),
        *(("2. the module", named(place)) for place in judgement.departures),
        ("3. the input", _input(judgement)),
        ("4. the page", f"open {page} in a browser"),
    ]
    lines = ["What to look at:", table(steps, indent=2, wraps=True).plain]
    if judgement.saved is not None:
        lines += command(["clipcheck", "replay", judgement.saved], "Next: ")
        lines += wrapped("runs this input again, and exits with 1 while it fails.", " " * 6)
    lines += command(["rm", "-r", folder], "Last: ")
    lines += wrapped("deletes the demo's files.", " " * 6)
    return Text("\n".join(lines))


def _input(judgement: Judgement) -> str:
    failing = judgement.failing_example
    if failing is None:
        return "no single input fails: only the module shows the fault"
    return f"{listed(failing.images, failing.prompts)}, the smallest failing input"
