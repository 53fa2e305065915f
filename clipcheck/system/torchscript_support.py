"""The one place that knows how far this torch and this Python still support TorchScript.

Like `clipcheck.errors` it imports nothing of ours, and may be imported everywhere.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from clipcheck.errors import UnavailableError

_FIRST_PYTHON_WITHOUT = (3, 14)
"""torch warns since 2.9 that torch.jit is not supported from this Python on (torch/jit)."""

REMEDY = "Run clipcheck on Python 3.11 to 3.13, with a torch that has torch.jit."


def unavailable() -> str | None:
    """Why TorchScript cannot be used here, or None where it can."""
    if sys.version_info >= _FIRST_PYTHON_WITHOUT:
        found = ".".join(map(str, sys.version_info[:2]))
        return f"torch supports TorchScript up to Python 3.13, and this is Python {found}"
    import torch

    if not hasattr(torch, "jit") or not hasattr(torch.jit, "load"):
        return f"torch {torch.__version__} has no TorchScript (torch.jit.load)"
    return None


def require() -> None:
    """See that TorchScript can be used here.

    Raises:
        UnavailableError: it cannot; the message has the reason.
    """
    reason = unavailable()
    if reason is not None:
        raise UnavailableError(
            f"the jit way is not available: {reason}",
            remedy=REMEDY,
        )


@contextmanager
def silenced() -> Iterator[None]:
    """Without torch's deprecation warnings of TorchScript, which each use of it gives.

    Users of clipcheck know: they check whether they can do without it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=DeprecationWarning)
        yield


def forget_classes() -> None:
    """Let go of the classes of modules that were traced.

    torch keeps each for as long as the process lives, with its code, and looks through all of them
    for every further one. Modules that are still in use keep their own.
    """
    import torch

    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
