"""Other packages that compute what clipcheck computes, to compare with.

Both warn when they are imported, and the tests turn warnings into errors.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType


@functools.cache
def reference_clip() -> ModuleType:
    """The module ``clip`` from clip-anytorch: the reference implementation as a package."""
    return _import_quietly("clip")


@functools.cache
def open_clip() -> ModuleType:
    return _import_quietly("open_clip")


def _import_quietly(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
