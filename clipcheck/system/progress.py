"""Report the progress of a task to a listener.

A listener is called with a text before each phase. A `Gauge` also gets the share that is done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, runtime_checkable

Progress = Callable[[str], None]
"""Called with a text before each phase."""

Advance = Callable[[float], None]
"""Called with the share of a phase that is done, from 0 to 1."""


@runtime_checkable
class Gauge(Protocol):
    """A listener that also gets the share that is done."""

    def __call__(self, what: str, /) -> None:
        """A phase begins."""

    def reach(self, share: float | None, /) -> None:
        """Set the share of the whole task that is done, from 0 to 1, never less than before; None
        before a step of unknown duration."""

    def apart(self) -> AbstractContextManager[object]:
        """Return a context for code that may show its own progress."""


@dataclass(frozen=True)
class Span:
    """A part of the whole task.

    Attributes:
        start: share of the whole task that is done at its start.
        end: share of the whole task that is done at its end.
    """

    listener: Progress
    start: float = 0.0
    end: float = 1.0

    def split(self, weights: Sequence[float]) -> list[Span]:
        """Split into consecutive parts, in proportion to their weights."""
        total = sum(weights)
        shares = (
            [weight / total for weight in weights] if total else [1 / len(weights)] * len(weights)
        )
        # Each ends where the next begins, to the last bit: what is done never grows less.
        bounds = [self._at(share) for share in accumulate(shares, initial=0.0)]
        bounds[-1] = self.end
        return [Span(self.listener, *each) for each in pairwise(bounds)]

    def say(self, what: str) -> None:
        """Report the current step."""
        self.listener(what)

    def reach(self, share: float) -> None:
        """Report the share of this part that is done."""
        if isinstance(self.listener, Gauge):
            self.listener.reach(self._at(share))

    def _at(self, share: float) -> float:
        return self.end if share == 1.0 else self.start + (self.end - self.start) * share

    def stall(self) -> None:
        """Report the start of a step of unknown duration."""
        if isinstance(self.listener, Gauge):
            self.listener.reach(None)

    def apart(self) -> AbstractContextManager[object]:
        """Return a context for code that may show its own progress."""
        return self.listener.apart() if isinstance(self.listener, Gauge) else nullcontext()


class Tally:
    """Counts the finished items of a phase."""

    def __init__(self, total: int, advance: Advance) -> None:
        self._total = total
        self._advance = advance
        self._done = 0

    def add(self, count: int = 1) -> None:
        """Count this many more as done."""
        self._done += count
        self._advance(min(1.0, self._done / max(1, self._total)))


def say_import(say: Progress) -> None:
    """Report that torch is being imported, if it is not yet: that takes seconds."""
    if "torch" not in sys.modules:
        say("importing torch")


def still(_: float) -> None:
    """Ignore the progress: an `Advance` without a listener."""


def silent(_: str) -> None:
    """Ignore the text: a `Progress` without a listener."""
