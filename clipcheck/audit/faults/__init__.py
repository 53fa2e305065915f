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

from clipcheck.audit.faults.attention import ATTENTION
from clipcheck.audit.faults.clean_layers import CLEAN_LAYERS
from clipcheck.audit.faults.clean_towers import CLEAN_TOWERS
from clipcheck.audit.faults.conditional import BATCH_DEPENDENT, INPUT_DEPENDENT
from clipcheck.audit.faults.forms import FORMS
from clipcheck.audit.faults.head import PROJECTION
from clipcheck.audit.faults.inputs import INPUTS
from clipcheck.audit.faults.layers import ACTIVATION, NORMALISATION
from clipcheck.audit.faults.places import POOLING, POSITION
from clipcheck.audit.faults.planting import Plant
from clipcheck.audit.faults.precision import PRECISION
from clipcheck.audit.faults.ranges import RANGES
from clipcheck.audit.faults.state import NAN, STATE
from clipcheck.audit.faults.stem import STEM
from clipcheck.audit.faults.variant import CLEAN_FAMILY, FAMILIES, Variant
from clipcheck.audit.faults.weights import WEIGHTS
from clipcheck.errors import UsageError, nearest

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
