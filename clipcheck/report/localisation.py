"""Where a checkpoint departs, as text and JSON."""

from __future__ import annotations

import json
import shlex
from typing import Any

from clipcheck.compare.fidelity import times
from clipcheck.compare.localisation import Localisation, Place
from clipcheck.localising import Localised
from clipcheck.report.json import writable

SCHEMA = 1

_LABEL = {"image": "image tower", "text": "text tower", "logits": "logits"}


def render(localised: Localised) -> str:
    """A line for each tower, and what to do next. Ends without a newline."""
    passed = "SOUND: no module departs." if localised.passed else "DEPARTS."
    named = shlex.quote(localised.path)
    return "\n".join(
        [
            localised.checkpoint,
            f"  jit against eager on {localised.device} in {localised.dtype}; looked for in "
            f"{localised.seconds['localisation']:.1f} s",
            *lines(localised.localisation),
            passed,
            *([] if localised.passed else [f"Next: clipcheck check {named} --report clip-report"]),
        ]
    )


def lines(localisation: Localisation) -> list[str]:
    """What was found in each tower, for people."""
    return [line for place in localisation.places for line in _tower(place)]


def named(place: Place) -> str:
    """The module, and the part of it."""
    return f"{place.module}, {place.part}" if place.part else str(place.module)


def measured(place: Place) -> str:
    """How far it is off, and on what."""
    if place.ratio == float("inf"):
        how = place.reason or "not finite, or of another shape"
    else:
        how = (
            f"{times(place.ratio)} further from float64 than the eager model's; "
            f"{place.allowed:g} times is allowed"
        )
    where = f" in {place.method}" if place.method else ""
    return f"{how}{where}; seen on {place.given}"


def _tower(place: Place) -> list[str]:
    label = f"  {_LABEL[place.tower]:<13}"
    if place.module is None:
        return [f"{label}{place.reason}"]
    return [f"{label}{named(place)}", f"{'':15}{measured(place)}"]


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


def entries(localisation: Localisation) -> list[dict[str, Any]]:
    """One for each tower; ``module`` is null where nothing departs."""
    return [
        {
            "tower": place.tower,
            "module": place.module,
            "part": place.part,
            "figures": {
                "rmse_ratio": place.ratio,
                "allowed": place.allowed,
                "rmse": place.error,
                "method": place.method,
            },
            "given": place.given,
            "reason": place.reason,
        }
        for place in localisation.places
    ]
