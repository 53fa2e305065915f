"""Hypothesis's database on disk, with a name before each key."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase


class Named(ExampleDatabase):
    """Keeps what fails under one name apart from all else.

    Hypothesis's own key is that of the function under test, and here that is always the same.
    """

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__()
        self._all = DirectoryBasedExampleDatabase(folder)
        self._name = name.encode()

    def save(self, key: bytes, value: bytes) -> None:
        """Keep a value; not being able to is no error."""
        self._all.save(self._name + key, value)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """All values of a key."""
        return self._all.fetch(self._name + key)

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget a value, if it is there."""
        self._all.delete(self._name + key, value)
