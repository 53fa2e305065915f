"""Tell whether this torch and this Python support TorchScript.

Like `clipcheck.errors` it imports nothing of ours, and may be imported everywhere.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from clipcheck.errors import UnavailableError

_FIRST_PYTHON_WITHOUT = (3, 14)
"""First Python for which torch, since 2.9, warns that torch.jit is not supported (torch/jit)."""

REMEDY = "Run clipcheck on Python 3.11 to 3.13, with a torch that has torch.jit."


def unavailable() -> str | None:
    """Return why TorchScript cannot be used here, or None."""
    if sys.version_info >= _FIRST_PYTHON_WITHOUT:
        found = ".".join(map(str, sys.version_info[:2]))
        return f"torch supports TorchScript up to Python 3.13, and this is Python {found}"
    import torch

    if not hasattr(torch, "jit") or not hasattr(torch.jit, "load"):
        return f"torch {torch.__version__} has no TorchScript (torch.jit.load)"
    return None


def require() -> None:
    """Raise if TorchScript cannot be used here.

    Raises:
        UnavailableError: the message has the reason.
    """
    reason = unavailable()
    if reason is not None:
        raise UnavailableError(
            f"TorchScript is not available: {reason}",
            remedy=REMEDY,
        )


@contextmanager
def silenced() -> Iterator[None]:
    """Hide torch's deprecation warnings, which every use of TorchScript gives."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=DeprecationWarning)
        yield


def forget_classes() -> None:
    """Release the classes of traced modules.

    torch keeps each class and its code until the process ends, and searches all of them for every
    new one. Modules in use keep their own.
    """
    import torch

    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
