"""Find which part of a library's optimiser makes a program fail: the level, and its passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from clipcheck.backends.calling import Array
from clipcheck.errors import RunError
from clipcheck.gates.optimised import Rewrites

SECONDS = 60.0
"""Time limit for a search: each trial opens the program anew."""


@dataclass(frozen=True)
class Setting:
    """How far a library rewrites a program before it runs it.

    Attributes:
        level: one of `Optimiser.levels`.
        without: passes that are left out, by name.
    """

    level: str
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Optimiser:
    """The optimiser of a program's library, as far as it can be controlled.

    Attributes:
        levels: how far it can rewrite the program, from not at all to as far as it was asked to.
        use: has the program run with another setting from now on, or with its own for None.
            Raises `RunError` if it cannot be opened so.
        passes: returns the passes that change the program with a setting; none where the library
            does not tell.
        rewrites: returns what a second setting replaced of the program with the first one. Takes
            an array for each input. Raises `RunError` if that cannot be told.
    """

    levels: Sequence[str]
    use: Callable[[Setting | None], None]
    passes: Callable[[Setting], Sequence[str]]
    rewrites: Callable[[Setting, Setting, Sequence[Array]], Rewrites]


@dataclass(frozen=True)
class Cause:
    """The part of an optimiser that makes a program fail.

    Attributes:
        level: the lowest at which it fails.
        below: the level below, at which it does not.
        passes: without these it does not fail at ``level``, and it does without fewer; empty if
            they were not found.
        reason: why not; else empty.
    """

    level: str
    below: str
    passes: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if not self.passes:
            return f"the level {self.level}"
        several = "" if len(self.passes) == 1 else "es"
        return f"the pass{several} {' and '.join(self.passes)} of the level {self.level}"

    @property
    def sound(self) -> Setting:
        """Return the setting nearest to the failing one with which it does not fail."""
        return Setting(self.level, self.passes) if self.passes else Setting(self.below)


def find_cause(
    optimiser: Optimiser, fails: Callable[[], bool], *, restore: bool = True
) -> Cause | None:
    """Return what makes a program fail, or None if it fails without optimisation as well.

    Args:
        fails: tells whether the program fails as it runs now. One that cannot be opened fails.
        restore: whether it runs with its own setting again in the end.
    """
    try:
        return _Search(optimiser, fails, time.monotonic() + SECONDS).cause()
    finally:
        if restore:
            optimiser.use(None)


class _Late(Exception):  # noqa: N818 - no error: it ends the search for passes
    """The time is up."""


@dataclass(frozen=True)
class _Search:
    optimiser: Optimiser
    fails: Callable[[], bool]
    deadline: float

    def cause(self) -> Cause | None:
        plain, *levels = self.optimiser.levels
        if not self._passes(Setting(plain)):
            return None
        below = plain
        for level in levels:
            if not self._passes(Setting(level)):
                found = Cause(level, below)
                try:
                    return self._with_passes(found)
                except _Late:
                    return replace(found, reason="the time for the search was over")
            below = level
        return None  # it failed before, and does not again

    def _passes(self, setting: Setting) -> bool:
        """Tell whether the program opens and does not fail with a setting."""
        try:
            self.optimiser.use(setting)
        except RunError:
            return False
        return not self.fails()

    def _in_time(self, setting: Setting) -> bool:
        if time.monotonic() > self.deadline:
            raise _Late
        return self._passes(setting)

    def _with_passes(self, found: Cause) -> Cause:
        """Add the passes: first all that change the program, then as few of them as possible."""
        names: list[str] = []
        while True:
            told = self.optimiser.passes(Setting(found.level, tuple(names)))
            # Without some, others may change the program in their place.
            more = [name for name in dict.fromkeys(told) if name not in names]
            if not more:
                what = "without any of its passes it fails as well" if names else "it names none"
                return replace(found, reason=what)
            names += more
            if self._in_time(Setting(found.level, tuple(names))):
                return replace(found, passes=tuple(self._fewest(names, found.level)))

    def _fewest(self, names: list[str], level: str) -> list[str]:
        """Return as few of the names as possible, without which it does not fail."""
        size = len(names) // 2
        while size:
            start = 0
            while start < len(names):
                fewer = names[:start] + names[start + size :]
                if fewer and self._in_time(Setting(level, tuple(fewer))):
                    names = fewer
                else:
                    start += size
            size //= 2
        return names
