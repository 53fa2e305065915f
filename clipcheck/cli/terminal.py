"""What a person at a terminal sees: the line of progress, on stderr, and colours.

Nothing of it is written where there is no terminal.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from clipcheck.checkpoints.download import without_bar
from clipcheck.report.cells import shortened, visible
from clipcheck.system.progress import Progress

_REFRESHES = 4
"""In a second."""

# Reading and drawing say little of how fast the models run: what is measured begins behind them.
_BEGINNING = 0.1

# A guess needs something to go by.
_LEAST_SECONDS = 2.0
_LEAST_SHARE = 0.05

_WEIGHT = 0.3
"""Of a new guess among those before it, so that what is shown does not jump."""


def show(text: Text) -> None:
    """Print a report on stdout; in colours where that is a terminal that has them."""
    encoding = sys.stdout.encoding or "utf-8"
    plain = text.plain.encode(encoding, "backslashreplace").decode(encoding)
    console = Console(highlight=False)
    if console.color_system is None or os.environ.get("NO_COLOR") or plain != text.plain:
        typer.echo(plain)
    else:
        console.print(text, soft_wrap=True)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress | None]:
    """What to give to a check as its ``progress``: a line on stderr, which is gone at the end.

    Args:
        quiet: show nothing, not even of a download.

    Yields:
        None where there is nobody to look on.
    """
    if quiet:
        with without_bar():
            yield None
        return
    console = Console(stderr=True)
    # rich before 15 leaves an empty line where no line can be written over.
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield None
        return
    with Display(console) as display:
        yield display


class Display:
    """A line that is written over and over, and erased in the end, whatever comes.

    Args:
        console: of a terminal.
        clock: gives seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started = clock()
        self._what = ""
        self._left = TimeLeft()
        # It begins with the first words: until then there may be a download.
        self._live = self._new()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, what: str, /) -> None:
        """Show that."""
        self._what = what
        self._live.start()
        self._live.refresh()

    def reach(self, share: float | None, /) -> None:
        """Show how long the rest may take."""
        self._left.reach(share, self._clock())

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Show nothing, for something else is shown."""
        shown = self._live.is_started
        self._live.stop()
        self._live = self._new()
        self._left.reach(None, self._clock())
        try:
            yield
        finally:
            if shown:
                self._live.start()

    def line(self) -> str:
        """What is shown, in one line."""
        now = self._clock()
        left = self._left.seconds(now)
        times = f" ({elapsed_text(now - self._started)}"
        times += ")" if left is None else f", {left_text(left)})"
        # The last cell of a line stays free: a terminal may begin the next one behind it.
        return shortened(visible(self._what), self._console.width - len(times) - 1) + times

    def _new(self) -> Live:
        return Live(
            get_renderable=lambda: Text(self.line(), no_wrap=True, overflow="crop"),
            console=self._console,
            refresh_per_second=_REFRESHES,
            transient=True,
            redirect_stdout=False,
        )


class TimeLeft:
    """Guesses how long the rest takes, from the share that is done and how long that took.

    The clock stands still while something is done that is in no share.
    """

    def __init__(self) -> None:
        self._worked = 0.0
        self._since: float | None = None
        self._share = 0.0
        self._first: tuple[float, float] | None = None
        self._end: float | None = None

    def reach(self, share: float | None, now: float) -> None:
        """So much is done; None where something begins that is in no share."""
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
        """What is left, or None where nobody knows."""
        if self._since is None or self._end is None:
            return None
        return max(0.0, self._end - self._seconds(now))

    def _seconds(self, now: float) -> float:
        return self._worked + (0.0 if self._since is None else now - self._since)


def elapsed_text(seconds: float) -> str:
    """``8 s`` or ``2:05``."""
    whole = int(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02}"


def left_text(seconds: float) -> str:
    """``about 12 s left``, with as many digits as a guess has."""
    if seconds <= 0:
        return "nearly done"
    if seconds <= 20:
        return f"about {math.ceil(seconds)} s left"
    if seconds <= 55:
        return f"about {math.ceil(seconds / 5) * 5} s left"
    if seconds <= 5400:
        return f"about {math.ceil(seconds / 60)} min left"
    return f"about {math.ceil(seconds / 3600)} h left"
