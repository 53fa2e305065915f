"""How far a piece of work is, told to whoever looks on.

A listener is called with a few words before each phase. One that is a `Gauge` is told as well what
share of the whole is done; others need not know of that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, runtime_checkable

Progress = Callable[[str], None]
"""Called with a few words before each phase."""

Advance = Callable[[float], None]
"""Called with the share of a phase that is done, from 0 to 1."""


@runtime_checkable
class Gauge(Protocol):
    """A listener that wants to know how much is done."""

    def __call__(self, what: str, /) -> None:
        """A phase begins."""

    def reach(self, share: float | None, /) -> None:
        """So much of the whole is done, from 0 to 1, and never less than before; None where
        something begins of which nobody knows how long it takes."""

    def apart(self) -> AbstractContextManager[object]:
        """Something that may show a progress of its own is done under it."""


@dataclass(frozen=True)
class Span:
    """A part of the whole work.

    Attributes:
        start: the share of the whole that is done as it begins.
        end: and that is done as it ends.
    """

    listener: Progress
    start: float = 0.0
    end: float = 1.0

    def split(self, weights: Sequence[float]) -> list[Span]:
        """Parts that follow one another, in proportion to their weights."""
        total = sum(weights)
        shares = (
            [weight / total for weight in weights] if total else [1 / len(weights)] * len(weights)
        )
        # Each ends where the next begins, to the last bit: what is done never grows less.
        bounds = [self._at(share) for share in accumulate(shares, initial=0.0)]
        bounds[-1] = self.end
        return [Span(self.listener, *each) for each in pairwise(bounds)]

    def say(self, what: str) -> None:
        """Say what is being done."""
        self.listener(what)

    def reach(self, share: float) -> None:
        """So much of this part is done."""
        if isinstance(self.listener, Gauge):
            self.listener.reach(self._at(share))

    def _at(self, share: float) -> float:
        return self.end if share == 1.0 else self.start + (self.end - self.start) * share

    def stall(self) -> None:
        """Start a step that is in no part, and may take long."""
        if isinstance(self.listener, Gauge):
            self.listener.reach(None)

    def apart(self) -> AbstractContextManager[object]:
        """Return a context for code that may show a progress of its own."""
        return self.listener.apart() if isinstance(self.listener, Gauge) else nullcontext()


class Tally:
    """Counts what is done of a phase."""

    def __init__(self, total: int, advance: Advance) -> None:
        self._total = total
        self._advance = advance
        self._done = 0

    def add(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self._advance(min(1.0, self._done / max(1, self._total)))


def say_import(say: Progress) -> None:
    """Say that torch is imported, before it is: that takes seconds, once in a process."""
    if "torch" not in sys.modules:
        say("importing torch")


def still(_: float) -> None:
    """An `Advance` that nobody looks on."""


def silent(_: str) -> None:
    """A `Progress` that nobody listens to."""
