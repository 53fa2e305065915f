"""Backends of a user's own code, as ``package.module:factory``.

The module is imported and runs in this process, outside of the sandbox: the user names it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import translating
from clipcheck.checkpoints.checkpoint import PROGRAM_FORMATS
from clipcheck.errors import UsageError, first_line

if TYPE_CHECKING:
    from clipcheck.backends.source import Source

FORM = "package.module:factory"

_FACTORY = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def is_factory(name: str) -> bool:
    """Tell whether the name of a backend is one of a user's own code."""
    return _FACTORY.fullmatch(name) is not None


def load(name: str) -> type[Backend]:
    """Import a user's factory, and return the backend that it makes: a class derived from `Backend`
    itself, or one whose models the function returns.

    The present folder is searched first, as by ``python -m``.

    Raises:
        UsageError: it cannot be imported, or is no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        with _here():
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
    # A user's module may raise anything when it is imported, and may exit.
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in _with_parents(module)
        raise UsageError(
            f"expected a backend as {FORM}, found {name!r}, which cannot be imported "
            f"({type(error).__name__}: {first_line(error)})",
            remedy="Run the command in the folder of the module, or install it."
            if missing
            else f"Correct the name, or mend the module: python -c 'import {module}' must work.",
        ) from error
    if isinstance(found, type) and issubclass(found, Backend):
        return found
    if not callable(found):
        raise UsageError(
            f"expected a function or a class derived from Backend, found {name!r}, which is of "
            f"type {type(found).__name__}",
            remedy="Name a function of a path that returns (encode_image, encode_text) or a torch "
            "module.",
        )
    return _made_by(found, name)


def _with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _made_by(factory: Callable[[str], object], written: str) -> type[Backend]:
    class Made(Backend):
        summary = f"what {written} returns for the path of a file"
        runs_programs = frozenset(PROGRAM_FORMATS)
        may_run_modules = True

        @classmethod
        def build(cls, source: Source) -> Backend:
            """Call the factory, and return a backend that runs its model."""
            import torch

            from clipcheck.backends.in_memory import InMemory
            from clipcheck.families.in_memory import adapt

            path = source.program or source.checkpoint.path
            with translating(written, "making the model"):
                try:
                    returned = factory(os.fspath(path))
                except SystemExit as error:
                    raise RuntimeError(f"it exits with {error.code}") from error
                adapted = adapt(returned, "candidate")
            wanted = getattr(torch, source.dtype)
            made = InMemory(adapted, source.model, source.device, wanted)
            made.name = written
            made.show_modules(source.model)
            return made

    return Made


@contextmanager
def _here() -> Iterator[None]:
    """Search the present folder first."""
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - sys.path has texts
    try:
        yield
    finally:
        sys.path.pop(0)
