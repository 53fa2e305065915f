"""How wide the lines of a text are: as a terminal is, or as files are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

WIDTH = 80
"""Cells that a line has at most in files and pipes."""

_NARROWEST, _WIDEST = 60, 100
"""Of a terminal: tables need some room, and longer lines are hard to read."""

_width = ContextVar("width", default=WIDTH)


def width() -> int:
    """Return how many cells a line has at most here."""
    return _width.get()


@contextmanager
def lines_of(cells: int) -> Iterator[None]:
    """Make lines of at most so many cells."""
    token = _width.set(cells)
    try:
        yield
    finally:
        _width.reset(token)


def width_for(stream: TextIO) -> int:
    """Return how many cells a line may have that is written to a stream."""
    if not stream.isatty():
        return WIDTH
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((WIDTH, 24)).columns))
