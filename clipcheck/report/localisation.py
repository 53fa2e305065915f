"""Render the result of `clipcheck localize` as text and JSON."""

from __future__ import annotations

from rich.text import Text

from clipcheck.gates.localisation import Place
from clipcheck.harness.localising import Localised
from clipcheck.report.advice import KEPT
from clipcheck.report.cells import command, visible, wrapped
from clipcheck.report.lines import BAD, GOOD
from clipcheck.report.optimised import sentences
from clipcheck.report.places import TOWERS, measured, named
from clipcheck.report.repeat import repeat
from clipcheck.results.document import to_json
from clipcheck.system.figures import duration

SCHEMA = 1


def report(localised: Localised) -> Text:
    """Return the place in each tower, the verdict, and the next step."""
    how = f"{localised.backend} against eager on {localised.device} in {localised.dtype}"
    lines = [
        *wrapped(visible(localised.checkpoint)),
        *wrapped(f"{how}; compared in {duration(localised.seconds['localisation'])}", "  "),
    ]
    for place in localised.localisation.places:
        lines += _place(place)
    for sentence in sentences(localised.optimised) if localised.optimised else ():
        lines += wrapped(sentence, f"  {'optimiser':<13}")
    steps: list[str] = []
    if not localised.passed:
        next_ = "Next: "
        steps = [
            *command([*repeat(localised), "--report", KEPT], next_),
            *wrapped("judges all outputs, and writes a report.", " " * len(next_)),
        ]
    texts = [Text(line) for line in lines]
    return Text("\n").join([*texts, verdict(localised), *(Text(step) for step in steps)])


def verdict(localised: Localised) -> Text:
    """Return the verdict, the last line."""
    if localised.passed:
        return Text("NOTHING DEPARTS in the modules that were compared.", GOOD)
    towers = ", ".join(TOWERS[place.tower] for place in localised.localisation.found)
    if localised.optimised is not None:
        where = f": {towers}" if towers else ""
        return Text(f"DEPARTS only when optimised{where}.", BAD)
    return Text(f"DEPARTS: {towers}.", BAD)


def _place(place: Place) -> list[str]:
    label = f"  {TOWERS[place.tower]:<13}"
    if place.module is None:
        return wrapped(place.reason, label)
    return [*wrapped(named(place), label), *wrapped(measured(place), " " * len(label))]


def render_json(localised: Localised) -> str:
    """Render the JSON document, schema 1. Ends with a newline."""
    document = {
        "schema": SCHEMA,
        "passed": localised.passed,
        "checkpoint": localised.checkpoint,
        "path": localised.path,
        "sha256": localised.sha256,
        "reference": localised.options.get("reference"),
        "device": localised.device,
        "dtype": localised.dtype,
        "seconds": dict(localised.seconds),
        "towers": localised.localisation.places,
        "optimised": localised.optimised,
    }
    return to_json(document)
