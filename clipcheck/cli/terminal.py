"""Display at a terminal: the line of progress, on stderr, and colours.

Nothing of it is written where there is no terminal.
"""

from __future__ import annotations

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
from clipcheck.cli.time_left import TimeLeft, elapsed_text, left_text
from clipcheck.report.cells import shortened, visible
from clipcheck.system.progress import Progress

_REFRESHES = 4
"""Refreshes in a second."""


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
    """Yield the ``progress`` to give to a check: a line on stderr, which is gone at the end.

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
        """Return the text that is shown, in one line."""
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
