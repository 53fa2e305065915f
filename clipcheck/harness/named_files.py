"""Names of files that a user gives in Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from clipcheck.errors import UsageError

Names: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_NOT_NAMES = (str, bytes, os.PathLike, Mapping)
"""Iterable types that are no list of names, such as a state dict."""


def files_named(checkpoints: object) -> list[str]:
    """Return the names of the checkpoints.

    Raises:
        UsageError: an object is no name but, for example, a model, or there is none.
    """
    # A module may be iterable, and an archive's then raises NotImplementedError.
    one = isinstance(checkpoints, _NOT_NAMES) or hasattr(checkpoints, "state_dict")
    if not isinstance(checkpoints, Iterable) or one:
        return [file_named(checkpoints, "a checkpoint")]
    names = [file_named(each, "a checkpoint") for each in checkpoints]
    if not names:
        raise UsageError("expected a checkpoint, found none", remedy="Name a checkpoint.")
    return names


def file_named(name: object, what: str) -> str:
    """Return a path or a released name as text.

    Raises:
        UsageError: the object is no name but, for example, a model.
    """
    if isinstance(name, str | os.PathLike):
        path = os.fspath(name)
        if isinstance(path, str):
            return path
    kind = f"{type(name).__module__}.{type(name).__qualname__}".removeprefix("builtins.")
    raise UsageError(
        f"expected the path or the released name of {what}, found an object of type {kind}",
        remedy="clipcheck judges files. Save it and give its path: torch.jit.save(archive, PATH) "
        "for TorchScript, torch.save(model.state_dict(), PATH) for weights alone, which also need "
        "a backend.",
    )
