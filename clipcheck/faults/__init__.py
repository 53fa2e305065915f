"""Faults to plant into an archive, and other ways to compute the same that are none.

A variant alters the modules of an archive before they are traced: functions take the place of
modules' ``forward`` or of the model's methods, by attributes of the instances, which the tracer
honours. No parameters or buffers are added; a tensor that such a function holds is a constant of
the graph.

What a plant has to observe: batches of no rows are traced, in the dtypes of the weights. So what
it does at that time must be defined for no rows, and must not depend in Python on their number; a
size is recorded as a value, a branch on one is not. A dtype that the loader replaces must not be
spelled out where it is the fault.

Every one of `FAULTS` changes what is computed, for some inputs at least, and none of `CLEAN` does
by more than the rounding of float32.
"""

from __future__ import annotations

from clipcheck.errors import UsageError, nearest
from clipcheck.faults.attention import ATTENTION
from clipcheck.faults.clean_layers import CLEAN_LAYERS
from clipcheck.faults.clean_towers import CLEAN_TOWERS
from clipcheck.faults.conditional import BATCH_DEPENDENT, INPUT_DEPENDENT
from clipcheck.faults.forms import FORMS
from clipcheck.faults.head import PROJECTION
from clipcheck.faults.inputs import INPUTS
from clipcheck.faults.layers import ACTIVATION, NORMALISATION
from clipcheck.faults.places import POOLING, POSITION
from clipcheck.faults.precision import PRECISION
from clipcheck.faults.ranges import RANGES
from clipcheck.faults.state import NAN, STATE
from clipcheck.faults.stem import STEM
from clipcheck.faults.variant import CLEAN_FAMILY, FAMILIES, Plant, Variant
from clipcheck.faults.weights import WEIGHTS

__all__ = ["CLEAN", "CLEAN_FAMILY", "FAMILIES", "FAULTS", "Plant", "Variant", "fault_named"]

FAULTS: tuple[Variant, ...] = (
    *WEIGHTS,
    *ACTIVATION,
    *NORMALISATION,
    *ATTENTION,
    *POSITION,
    *POOLING,
    *STEM,
    *PROJECTION,
    *INPUTS,
    *PRECISION,
    *RANGES,
    *INPUT_DEPENDENT,
    *BATCH_DEPENDENT,
    *STATE,
    *FORMS,
    *NAN,
)


def fault_named(name: str) -> Variant:
    """The fault of that name.

    Raises:
        UsageError: there is none.
    """
    for fault in FAULTS:
        if fault.name == name:
            return fault
    names = [fault.name for fault in FAULTS]
    raise UsageError(
        f"expected a fault of the catalogue, found {name!r}",
        remedy=f"{nearest(name, names)}; `clipcheck audit --list` lists all.",
    )


CLEAN: tuple[Variant, ...] = (*CLEAN_LAYERS, *CLEAN_TOWERS)
