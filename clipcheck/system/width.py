"""The width of lines of text, in a terminal and in files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

WIDTH = 80
"""Greatest width of a line in files and pipes, in cells."""

_NARROWEST, _WIDEST = 60, 100
"""Of a terminal: tables need some room, and longer lines are hard to read."""

_width = ContextVar("width", default=WIDTH)


def width() -> int:
    """Return the greatest width of a line here, in cells."""
    return _width.get()


@contextmanager
def lines_of(cells: int) -> Iterator[None]:
    """Set the greatest width of lines during the block."""
    token = _width.set(cells)
    try:
        yield
    finally:
        _width.reset(token)


def width_for(stream: TextIO) -> int:
    """Return the greatest width of lines for a stream."""
    if not stream.isatty():
        return WIDTH
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((WIDTH, 24)).columns))
