"""Copy a model in memory to float64, and verify that the copy computes in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipcheck.errors import first_line
from clipcheck.families.base import DualEncoder
from clipcheck.families.in_memory import Adapted, copied
from clipcheck.gates.result import ENCODERS
from clipcheck.gates.tolerances import LIMITS

_ROUNDINGS = 1e4
"""Greatest distance of a model from its float64 copy, in roundings of the model's numbers; beyond
it the copy computes something else. Deep models in float32 measured up to 40."""

_MOST = 0.2
"""Greatest such distance as a share of the features, where roundings are coarse."""


class Lowered(TorchDispatchMode):
    """Collects the operations that make less than float64 of float64.

    Attributes:
        found: name and dtype of each.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation, and record it if it lowers the precision."""
        out = func(*args, **(kwargs or {}))
        given = tree_leaves((args, kwargs or {}))
        exact = any(isinstance(each, Tensor) and each.dtype == torch.float64 for each in given)
        lower = [each.dtype for each in tree_leaves(out) if exact and _is_narrow(each)]
        self.found += [f"{func} gives {str(dtype).removeprefix('torch.')}" for dtype in lower]
        return out


def _is_narrow(found: object) -> bool:
    return (
        isinstance(found, Tensor)
        and found.is_floating_point()
        and found.dtype.itemsize < torch.float64.itemsize
    )


def copy_in_float64(
    adapted: Adapted, device: torch.device, dtype: str, given: dict[str, Tensor]
) -> tuple[DualEncoder | None, str]:
    """Return a copy of a model in float64, or None and why there is none that can be trusted.

    The copy has to compute in float64 throughout, and what the model computes.

    Args:
        device: of the copy, which must have float64.
        dtype: of the model, by name.
        given: by encoder, inputs to run both on.
    """
    if adapted.module is None:
        return None, "functions on arrays cannot be cast to float64"
    # What a user's module consists of may raise anything.
    try:
        twin = copied(adapted, device)
    except Exception as error:
        return None, f"it cannot be copied to float64 ({_quoted(error)})"
    lowered = Lowered()
    try:
        with torch.inference_mode(), lowered:
            exact = {each: getattr(twin, each)(rows.to(device)) for each, rows in given.items()}
    except Exception as error:
        return None, f"its copy in float64 does not run ({_quoted(error)})"
    with torch.inference_mode():
        own = {each: getattr(adapted.model, each)(rows) for each, rows in given.items()}
    if lowered.found:
        return None, f"its copy does not compute in float64 throughout: {lowered.found[0]}"
    for method, found in exact.items():
        name = ENCODERS[method]
        if found.dtype != torch.float64:
            return None, f"its copy in float64 gives {name} in {_name_of(found.dtype)}"
        apart = _apart(own[method], found)
        if not apart <= min(_ROUNDINGS * LIMITS[dtype].roundoff, _MOST):
            return None, f"its copy in float64 gives other {name}, {apart:.1e} of their size off"
    return twin, ""


def _apart(own: Tensor, exact: Tensor) -> float:
    off = own.to(exact.device).double() - exact
    return float((off.square().mean() / exact.square().mean()).sqrt())


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _quoted(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:160]}"
