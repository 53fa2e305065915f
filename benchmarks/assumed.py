"""The eager model's own error, which is assumed for a reference without a float64 copy.

Prints the median error of a row of features, relative to the row's size, for each architecture and
dtype: ``python -m benchmarks.assumed [ARCHITECTURE ...]``. `clipcheck.gates.tolerances.ASSUMED` is
above the greatest.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from clipcheck.backends.reference import Reference
from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.families.model_inputs import inputs_of
from clipcheck.families.registry import over
from clipcheck.gates.metrics import row_rms
from clipcheck.gates.result import FEATURES
from clipcheck.gates.tolerances import ASSUMED
from clipcheck.inputs.batches import batches
from clipcheck.writers.synthesize import synthesize

NAMES = ("tiny-vit", "tiny-resnet", "ViT-B/32", "RN50")
IMAGES = 4


def error(name: str, dtype: str) -> float:
    """Return the greater of the median errors of image and text features."""
    model = ARCHITECTURES[name]
    weights = {
        key: each.to(getattr(torch, dtype)) if each.is_floating_point() else each
        for key, each in synthesize(model).items()
    }
    reference = Reference(over(model, weights), model, torch.device("cpu"))
    given = [(each.pixels, each.tokens) for each in batches(IMAGES, inputs_of(model), 0)]
    own, exact = reference.outputs(given), reference.exact_outputs(given)
    found = []
    for feature in FEATURES:
        mine, theirs = (np.concatenate([each[feature] for each in some]) for some in (own, exact))
        found.append(float(np.median(row_rms(mine - theirs) / row_rms(theirs))))
    return max(found)


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        for dtype, assumed in ASSUMED.items():
            print(f"{name:12} {dtype:9} {error(name, dtype):.1e} (assumed {assumed:g})")


if __name__ == "__main__":
    main()
