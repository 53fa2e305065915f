"""Output to a terminal: colours on stdout, and a progress line on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from clipcheck.checkpoints.download import without_bar
from clipcheck.cli.time_left import TimeLeft, elapsed_text, left_text
from clipcheck.report.cells import shortened, visible
from clipcheck.system.progress import Progress

_REFRESHES = 4
"""Refreshes per second."""


def show(text: Text) -> None:
    """Print a report on stdout, in colours if it is a terminal that has them."""
    encoding = sys.stdout.encoding or "utf-8"
    plain = text.plain.encode(encoding, "backslashreplace").decode(encoding)
    console = Console(highlight=False)
    if console.color_system is None or os.environ.get("NO_COLOR") or plain != text.plain:
        typer.echo(plain)
    else:
        console.print(text, soft_wrap=True)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Progress | None]:
    """Show a progress line on stderr while the block runs, and erase it at the end.

    Args:
        quiet: show nothing, not even the bar of a download.

    Yields:
        The ``progress`` for a check, or None if stderr is no terminal.
    """
    if quiet:
        with without_bar():
            yield None
        return
    console = Console(stderr=True)
    # On a terminal that cannot overwrite a line, rich before 15 leaves an empty one.
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield None
        return
    with Display(console) as display:
        yield display


class Display:
    """A progress line that is redrawn in place, and erased at the end, also after an error.

    Args:
        console: of a terminal.
        clock: returns seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started = clock()
        self._what = ""
        self._left = TimeLeft()
        # Started by the first text: before that, a download may show its own bar.
        self._live = self._new()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, what: str, /) -> None:
        """Show this text."""
        self._what = what
        self._live.start()
        self._live.refresh()

    def reach(self, share: float | None, /) -> None:
        """Update the time left from the share that is done."""
        self._left.reach(share, self._clock())

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Hide the line while something else writes to the terminal."""
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
        """Return the shown text, cut to one line."""
        now = self._clock()
        left = self._left.seconds(now)
        times = f" ({elapsed_text(now - self._started)}"
        times += ")" if left is None else f", {left_text(left)})"
        # The last column stays free: some terminals wrap after filling it.
        return shortened(visible(self._what), self._console.width - len(times) - 1) + times

    def _new(self) -> Live:
        return Live(
            get_renderable=lambda: Text(self.line(), no_wrap=True, overflow="crop"),
            console=self._console,
            refresh_per_second=_REFRESHES,
            transient=True,
            redirect_stdout=False,
        )
