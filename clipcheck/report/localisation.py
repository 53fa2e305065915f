"""What `clipcheck localize` found, as text and JSON."""

from __future__ import annotations

import json
import shlex

from clipcheck.compare.localisation import Place
from clipcheck.localising import Localised
from clipcheck.report.json import writable
from clipcheck.report.places import TOWERS, entries, measured, named
from clipcheck.report.text import wrapped

SCHEMA = 1


def render(localised: Localised) -> str:
    """The place in each tower, and what to do next. Ends without a newline."""
    how = f"jit against eager on {localised.device} in {localised.dtype}"
    lines = [
        localised.checkpoint,
        *wrapped(f"{how}; walked through in {localised.seconds['localisation']:.1f} s"),
    ]
    for place in localised.localisation.places:
        lines += _place(place)
    if localised.passed:
        return "\n".join([*lines, "NOTHING DEPARTS in what was looked at."])
    towers = ", ".join(TOWERS[place.tower] for place in localised.localisation.found)
    return "\n".join(
        [
            *lines,
            f"DEPARTS: {towers}.",
            f"Next: clipcheck check {shlex.quote(localised.path)} --report clip-report",
            "      judges all that it gives, and makes a page of it.",
        ]
    )


def _place(place: Place) -> list[str]:
    label = f"{TOWERS[place.tower]}: "
    if place.module is None:
        return wrapped(f"{label}{place.reason}")
    return [*wrapped(f"{label}{named(place)}"), *wrapped(measured(place), indent="    ")]


def render_json(localised: Localised) -> str:
    """The document, schema 1, with a newline at its end."""
    document = {
        "schema": SCHEMA,
        "passed": localised.passed,
        "checkpoint": localised.checkpoint,
        "path": localised.path,
        "sha256": localised.sha256,
        "device": localised.device,
        "dtype": localised.dtype,
        "seconds": dict(localised.seconds),
        "towers": entries(localised.localisation),
    }
    return json.dumps(writable(document), indent=2, allow_nan=False) + "\n"
