"""The strings and numbers that training code saves beside a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from clipcheck.checkpoints.state_dicts import Inert

Entry: TypeAlias = "str | bool | int | float | list[Entry] | dict[str, Entry]"
"""A value of a record."""

_MOST_ENTRIES = 1000
"""Most values of a record. The options of open_clip's training are about a hundred."""

_MOST_TEXT = 1000
"""Most characters of a string in a record. Longer ones are left out."""

_MOST_DEPTH = 4
"""Most levels of nested lists and mappings in a record."""

_MOST_NUMBER = 1 << 63


def read_record(found: object) -> dict[str, Entry]:
    """Return the strings and numbers at the top level of a training checkpoint, by name.

    Values may be lists and mappings of such values; the attributes of an object count as a mapping.
    Values that are longer, deeper or of another type, such as tensors, are left out.
    """
    room = iter(range(_MOST_ENTRIES))
    return _mapping(found, _MOST_DEPTH, room) if isinstance(found, Mapping) else {}


def _mapping(found: Mapping[object, object], depth: int, room: Iterator[int]) -> dict[str, Entry]:
    kept: dict[str, Entry] = {}
    for key, value in found.items():
        if isinstance(key, str) and len(key) <= _MOST_TEXT:
            entry = _entry(value, depth, room)
            if entry is not None:
                kept[key] = entry
    return kept


def _entry(value: object, depth: int, room: Iterator[int]) -> Entry | None:
    """Return the value for a record, or None to leave it out."""
    if (
        not isinstance(value, str | int | float | Mapping | list | tuple)
        or next(room, None) is None
    ):
        return None
    if isinstance(value, str):
        return value if len(value) <= _MOST_TEXT else None
    if isinstance(value, int):
        return value if abs(value) < _MOST_NUMBER else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not depth or len(value) > _MOST_ENTRIES:
        return None
    if isinstance(value, Inert) and not value:
        value = value.attributes
    if isinstance(value, Mapping):
        return _mapping(value, depth - 1, room) or None
    entries = [_entry(each, depth - 1, room) for each in value]
    # The whole list or none of it: a part of it would have another meaning.
    kept = [entry for entry in entries if entry is not None]
    return kept if len(kept) == len(entries) else None
