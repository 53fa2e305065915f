"""The handler of a sandbox process that runs programs on numpy's arrays, without torch.

It is for programs whose weights nobody asks for; `clipcheck.backends.handlers` has the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipcheck.backends.calling import Array, translating
from clipcheck.backends.opened import Opened
from clipcheck.backends.registry import find
from clipcheck.sandbox.serving import Caller

Answer = tuple[dict[str, Any], Sequence[Array]]


class ArrayHandler:
    """Opens programs, and runs them."""

    def __init__(self, _: Caller) -> None:
        self._backend = ""
        self._opened: list[Opened] = []

    def open(
        self, _: Sequence[Array], backend: str, path: str, device: Any, options: dict[str, str]
    ) -> Answer:
        """Open a program, and return its number and its inputs.

        Args:
            device: by name.
        """
        self._backend = backend
        opened = find(backend).open_here(Path(path), device, options)
        self._opened.append(opened)
        declared = [[each.name, each.shape, each.dtype] for each in opened.declared]
        phrases = {"doubts": list(opened.doubts), "notes": list(opened.notes)}
        told = {"declared": declared, **phrases, "restores": False}
        return {**told, "number": len(self._opened) - 1}, ()

    def run(self, arrays: Sequence[Array], number: int) -> Answer:
        """Return a program's outputs, and their names."""
        with translating(self._backend, "running the program"):
            found = self._opened[number].run(arrays)
        return {"names": [name for name, _ in found]}, [array for _, array in found]
