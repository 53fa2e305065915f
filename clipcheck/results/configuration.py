"""Options that a check took from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """Options of a check from ``[tool.clipcheck]`` of a file.

    Attributes:
        file: path of the file; empty if there is none.
        options: values by key, as in the file.
    """

    file: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return one line, or an empty string without options."""
        if not self.options:
            return ""
        told = ", ".join(f"{key} = {_toml(value)}" for key, value in self.options.items())
        return f"Options from {self.file}: {told}"


def _toml(value: Any) -> str:
    """Write a value as TOML does."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
