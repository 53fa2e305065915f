"""Text of a demo of a planted fault around the report: where to look, and in which order."""

from __future__ import annotations

from rich.text import Text

from clipcheck.audit.faults import Variant
from clipcheck.inputs.examples import listed
from clipcheck.report.cells import command, wrapped
from clipcheck.report.places import named
from clipcheck.results.judgement import Judgement

_LABEL = 18


def planted(variant: Variant, architecture: str) -> str:
    """Describe the planted fault, before the check."""
    return "\n".join(
        [
            *wrapped(f"Planted into a {architecture} archive, with seeded weights:"),
            *wrapped(f"{variant.name}: {variant.reason}.", "  "),
        ]
    )


def tour(judgement: Judgement, folder: str, page: str) -> Text:
    """Through what was found, step by step.

    Args:
        judgement: of the archive with the fault.
        folder: what the demo has written to.
        page: the report in it that a browser shows.
    """
    failed = [gate.name for gate in judgement.gates if not gate.passed]
    steps = [
        ("1. the verdict", f"not passed: {', '.join(failed)}"),
        *(("2. the module", named(place)) for place in judgement.departures),
        ("3. the input", _input(judgement)),
        ("4. the page", f"{page}, to be opened in a browser"),
    ]
    lines = ["What to look at:"]
    for label, text in steps:
        lines += wrapped(text, f"  {label:<{_LABEL}}")
    if judgement.saved is not None:
        lines += command(["clipcheck", "replay", judgement.saved], "Next: ")
        lines += wrapped("runs that input again, and exits with 1 while it fails.", " " * 6)
    lines += command(["rm", "-r", folder], "Last: ")
    lines += wrapped("deletes the demo's files.", " " * 6)
    return Text("\n".join(lines))


def _input(judgement: Judgement) -> str:
    failing = judgement.failing_example
    if failing is None:
        return "none fails by itself: the fault is seen in the module alone"
    return f"{listed(failing.images, failing.prompts)}, the smallest that fails"
