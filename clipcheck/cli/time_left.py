"""Estimate how long the rest of a task takes."""

from __future__ import annotations

import math

# The first tenth is reading and drawing, which do not predict how fast the models run.
_BEGINNING = 0.1

# No estimate before this much was measured.
_LEAST_SECONDS = 2.0
_LEAST_SHARE = 0.05

_WEIGHT = 0.3
"""Weight of a new estimate in the moving average, so that the shown number does not jump."""


class TimeLeft:
    """Estimates the time left from the share that is done and the time that it took.

    Work that is part of no share (``reach(None, ...)``) does not count as time.
    """

    def __init__(self) -> None:
        self._worked = 0.0
        self._since: float | None = None
        self._share = 0.0
        self._first: tuple[float, float] | None = None
        self._end: float | None = None

    def reach(self, share: float | None, now: float) -> None:
        """Record the share that is done; None when work begins that is part of no share."""
        worked = self._seconds(now)
        if share is None:
            self._worked, self._since = worked, None
            return
        if self._since is None:
            self._since = now
        self._share = max(self._share, share)
        if self._share < _BEGINNING:
            return
        if self._first is None:
            self._first = worked, self._share
        seconds, done = worked - self._first[0], self._share - self._first[1]
        if seconds < _LEAST_SECONDS or done < _LEAST_SHARE:
            return
        end = worked + (1 - self._share) * seconds / done
        self._end = end if self._end is None else self._end + _WEIGHT * (end - self._end)

    def seconds(self, now: float) -> float | None:
        """Return the seconds left, or None if there is no estimate yet."""
        if self._since is None or self._end is None:
            return None
        return max(0.0, self._end - self._seconds(now))

    def _seconds(self, now: float) -> float:
        return self._worked + (0.0 if self._since is None else now - self._since)


def elapsed_text(seconds: float) -> str:
    """Format as ``8 s`` or ``2:05``."""
    whole = int(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02}"


def left_text(seconds: float) -> str:
    """Format as ``about 12 s left``, rounded more the longer it is."""
    if seconds <= 0:
        return "nearly done"
    if seconds <= 20:
        return f"about {math.ceil(seconds)} s left"
    if seconds <= 55:
        return f"about {math.ceil(seconds / 5) * 5} s left"
    if seconds <= 5400:
        return f"about {math.ceil(seconds / 60)} min left"
    return f"about {math.ceil(seconds / 3600)} h left"
