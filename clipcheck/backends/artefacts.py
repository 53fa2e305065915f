"""Compiled and exported programs that are built once and kept, in a folder of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path


def default_folder() -> Path:
    """Where they are kept."""
    return Path("~/.cache/clipcheck/artefacts").expanduser()


class Artefacts:
    """Keeps what was built, by all that it depends on.

    Args:
        folder: where; None keeps nothing.
        scratch: where that is built which is not kept.
    """

    def __init__(self, folder: Path | None, scratch: Path) -> None:
        self._folder = folder
        self._scratch = scratch

    def get(self, name: str, key: Mapping[str, str], build: Callable[[Path], None]) -> Path:
        """The file ``name``, as ``build`` wrote it now or before for the same key.

        Args:
            name: of the file, with its ending.
            key: all that it depends on, as versions and options, beside clipcheck's own version.
            build: writes it to the path that it is given.
        """
        path = self._scratch / name
        build(path)
        return path
