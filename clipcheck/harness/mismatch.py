"""Show the row of logits that the gate ``top1`` failed on."""

from __future__ import annotations

from collections.abc import Sequence

from clipcheck.gates.result import OUTPUTS, Case
from clipcheck.gates.tolerances import LIMITS
from clipcheck.gates.top1 import worst_exchange
from clipcheck.harness.trial import Trial
from clipcheck.inputs.preprocess import picture_of
from clipcheck.inputs.rules import CLIP_IMAGES, ImageRules
from clipcheck.results.failing import Mismatch


def find_mismatch(
    trial: Trial, cases: Sequence[Case], rules: ImageRules = CLIP_IMAGES
) -> Mismatch | None:
    """Return the row with its images, or None if nothing could be compared."""
    worst = worst_exchange(cases, LIMITS[trial.dtype], trial.scale)
    if worst is None:
        return None
    case, pixels = cases[worst.case], trial.batches[worst.case].pixels
    row, column = OUTPUTS[worst.output]
    images = [worst.row] if row == "image" else [worst.found, worst.right]
    return Mismatch(
        case.place(row, worst.row),
        case.place(column, worst.found),
        case.place(column, worst.right),
        tuple((case.place("image", each), picture_of(pixels[each], rules)) for each in images),
    )
