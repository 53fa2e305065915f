"""Read values of a configuration, and collect those that are invalid."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from clipcheck.checkpoints.architecture import Activation
from clipcheck.checkpoints.dimensions import listed
from clipcheck.errors import ArchitectureError

Config = Mapping[str, Any]

_T = TypeVar("_T")

_MOST = 1 << 20
"""Greatest size in a configuration; the largest known is a vocabulary of 901,629."""

MOST_LAYERS = 1000


class Reader:
    """Reads values from a configuration, and collects invalid ones."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def whole(self, place: str, value: Any, most: int = _MOST) -> int:
        """Return a size: a JSON integer of at least 1, so neither true nor 2.0."""
        if type(value) is int and 0 < value <= most:
            return value
        return self._refuse(place, value, f"a whole number from 1 to {most}", 1)

    def side(self, place: str, value: Any) -> int:
        """Return the pixels a side; open_clip may have a pair of equal height and width."""
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        return self.whole(place, value)

    def number(self, place: str, value: Any, most: float) -> float:
        """Return a number above 0, and at most ``most``."""
        if type(value) in (int, float) and 0 < value <= most:
            return float(value)
        return self._refuse(place, value, f"a number above 0 and up to {most}", most)

    def require(self, place: str, value: Any, allowed: tuple[Any, ...]) -> None:
        """Require one of the allowed values; without any, the setting itself is unknown."""
        if not allowed:
            self.problems.append(f"{place}, which no CLIP model of the released kind has")
        elif not any(type(value) is type(each) and value == each for each in allowed):
            self._refuse(place, value, repr(allowed[0]), None)

    def choose(self, place: str, value: Any, known: Mapping[str, Activation]) -> Activation:
        """Return the activation with this name."""
        if isinstance(value, str) and value in known:
            return known[value]
        return self._refuse(place, value, f"one of {', '.join(known)}", Activation.QUICK_GELU)

    def head_width(self, place: str, value: Any, width: int, heads: int) -> int:
        """Return the channels of each head."""
        if heads > 0 and width % heads == 0:
            return width // heads
        return self._refuse(place, value, f"one that divides the width of {width}", width)

    def _refuse(self, place: str, value: Any, wanted: str, instead: _T) -> _T:
        self.problems.append(f"{place} is {reprlib.repr(value)} in place of {wanted}")
        return instead

    def finish(self, path: Path) -> None:
        """Raise an error if anything was refused."""
        if self.problems:
            raise ArchitectureError(
                f"it describes a model that clipcheck does not build: {listed('', self.problems)}",
                remedy="Take the configuration that belongs to the weights. If this is the one, "
                "clipcheck cannot judge the model: it is none of CLIP's released kind.",
                path=path,
            )


def section(config: Config, name: str, defaults: Config, path: Path) -> dict[str, Any]:
    """Return a tower's configuration, with defaults.

    If there is also a ``text_config_dict``, as in some old files, it takes precedence, with its
    defaults (transformers/models/clip/configuration_clip.py, ``__post_init__``).
    """
    given = mapping(config.get(name), name, path)
    legacy = config.get(f"{name}_dict")
    if legacy is not None:
        given = {**given, **defaults, **mapping(legacy, f"{name}_dict", path)}
    return {**defaults, **given}


def mapping(value: Any, name: str, path: Path) -> Config:
    """Return an object of a configuration, or raise if it is none."""
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise ArchitectureError(
            f"expected an object under {name!r}, found {found}",
            remedy="Take the configuration that belongs to the weights.",
            path=path,
        )
    return value
