"""Hypothesis's database on disk, with a prefix for each key."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase


class NamedDatabase(ExampleDatabase):
    """Stores failing examples under a name.

    Hypothesis's own key depends on the tested function, which is always the same here.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self._all = DirectoryBasedExampleDatabase(folder)
        self._name = name.encode()

    def save(self, key: bytes, value: bytes) -> None:
        """Store a value; a failure to do so is no error."""
        self._all.save(self._name + key, value)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """Return all values of a key."""
        return self._all.fetch(self._name + key)

    def delete(self, key: bytes, value: bytes) -> None:
        """Delete a value, if it exists."""
        self._all.delete(self._name + key, value)
