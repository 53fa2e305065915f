"""Faults to plant into an archive, and clean variants, which compute the same in another way.

A variant alters the modules of an archive before they are traced: functions replace modules'
``forward`` or the model's methods, as attributes of the instances, which the tracer calls. No
parameters or buffers are added; a tensor in such a function's closure is a constant of the graph.

Rules for a plant: tracing uses batches without rows, in the dtypes of the weights. So its code must
be defined for zero rows, and no Python branch may depend on the number of rows: the trace records a
size as a value, but not a branch on it. A fault must not name a dtype that the loader replaces.

Each of `FAULTS` changes the outputs for at least some inputs; none of `CLEAN` changes them by more
than the rounding of float32.
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
    """Return the fault of this name.

    Raises:
        UsageError: there is no such fault.
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
