"""Check that a CLIP checkpoint computes the same in every backend.

The public names are loaded when they are first used (PEP 562), so that
``import clipcheck`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from clipcheck._version import __version__

if TYPE_CHECKING:
    from clipcheck.checkpoints.registry import available_models
    from clipcheck.errors import ClipcheckError
    from clipcheck.harness.options import CheckOptions
    from clipcheck.inputs.tokenizer import tokenize
    from clipcheck.models.loader import load, load_both
    from clipcheck.testing import Result, assert_consistent, assert_same, check, compare

_HOME = {
    "CheckOptions": "clipcheck.harness.options",
    "ClipcheckError": "clipcheck.errors",
    "Result": "clipcheck.testing",
    "assert_consistent": "clipcheck.testing",
    "assert_same": "clipcheck.testing",
    "available_models": "clipcheck.checkpoints.registry",
    "check": "clipcheck.testing",
    "compare": "clipcheck.testing",
    "load": "clipcheck.models.loader",
    "load_both": "clipcheck.models.loader",
    "tokenize": "clipcheck.inputs.tokenizer",
}

__all__ = [
    "CheckOptions",
    "ClipcheckError",
    "Result",
    "__version__",
    "assert_consistent",
    "assert_same",
    "available_models",
    "check",
    "compare",
    "load",
    "load_both",
    "tokenize",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'clipcheck' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
