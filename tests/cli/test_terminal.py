from __future__ import annotations

import io
import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from clipcheck.cli import terminal
from clipcheck.cli.terminal import Display
from clipcheck.cli.time_left import TimeLeft, elapsed_text, left_text
from conftest import Run

ERASED = re.compile(r"\x1b\[1A\x1b\[2K$")


class Screen:
    """A pseudo-terminal that records everything written to it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.file: TextIO = os.fdopen(slave, "w")
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while some := os.read(self._master, 4096):
                self._written += some
        except OSError:  # the other end is closed
            pass

    def close(self) -> str:
        self.file.close()
        self._reader.join()
        os.close(self._master)
        return self._written.decode()


@pytest.fixture(autouse=True)
def _an_ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def standing_for(name: str, file: TextIO) -> Iterator[None]:
    before = getattr(sys, name)
    setattr(sys, name, file)
    try:
        yield
    finally:
        setattr(sys, name, before)


class Clock:
    """Returns the time that it is set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def written(*, quiet: bool = False, error: type[BaseException] | None = None) -> str:
    """Return what some work writes to stderr, which is a terminal."""
    screen = Screen()
    try:
        with standing_for("stderr", screen.file), terminal.progress(quiet) as progress:
            if progress is not None:
                progress("model.pt: running the archive")
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    finally:
        found = screen.close()
    return found


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_the_line_is_shown_and_erased_in_the_end(error: type[BaseException] | None) -> None:
    found = written(error=error)
    assert "model.pt: running the archive (0 s)" in found
    assert ERASED.search(found)
    assert "\x1b[?25h" in found  # the cursor is there again


def test_nothing_is_written_when_quiet_or_where_lines_cannot_be_written_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert written(quiet=True) == ""
    monkeypatch.setenv("TERM", "dumb")
    assert written() == ""


def test_nothing_is_written_where_stderr_is_no_terminal() -> None:
    file = io.StringIO()
    with standing_for("stderr", file), terminal.progress() as progress:
        assert progress is None
    assert file.getvalue() == ""


def test_a_download_shows_its_bar_unless_quiet() -> None:
    from clipcheck.checkpoints import download

    with terminal.progress(quiet=True):
        assert not download._bar_shown.get()
    assert download._bar_shown.get()


def test_the_progress_line_is_hidden_during_a_download_bar() -> None:
    screen = Screen()
    with Display(Console(file=screen.file)) as display:
        display("reading")
        with display.apart():
            screen.file.write("BAR\n")
        display("running")
    found = screen.close()
    assert found.index("reading") < found.index("BAR") < found.index("running")
    assert ERASED.search(found[: found.index("BAR")])


def test_a_line_fits_and_moves_nothing() -> None:
    console = Console(file=io.StringIO(), width=60)
    clock = Clock()
    display = Display(console, clock)
    clock.now = 65
    display._what = "日本/" * 30 + "\x1b[31m\n.pt: running"
    line = display.line()
    assert line.isprintable()
    assert cell_len(line) in (58, 59)
    assert line.endswith(".pt: running (1:05)")


def test_the_time_left_is_shown_beside_the_time_gone() -> None:
    clock = Clock()
    display = Display(Console(file=io.StringIO(), width=80), clock)
    display._what = "running"
    for clock.now, share in ((1, 0.1), (11, 0.5)):
        display.reach(share)
    clock.now = 13
    assert display.line() == "running (13 s, about 11 s left)"


def test_the_time_left_is_right_for_a_steady_pace() -> None:
    left = TimeLeft()
    for tick in range(20, 101):
        left.reach(tick / 100, now=tick)
        if tick >= 26:
            assert left.seconds(tick) == pytest.approx(100 - tick)
    assert left.seconds(110) == 0


def test_no_time_is_estimated_at_the_start() -> None:
    left = TimeLeft()
    assert left.seconds(0) is None
    for now, share in ((0, 0.0), (10, 0.09), (11, 0.1), (11.5, 0.3), (30, 0.1)):
        left.reach(share, now)
        assert (left.seconds(now) is None) == (now < 30)


def test_no_time_is_estimated_during_phases_of_unknown_length() -> None:
    left = TimeLeft()
    left.reach(0.1, 0)
    left.reach(0.55, 45)
    assert left.seconds(45) == pytest.approx(45)
    left.reach(None, 50)
    assert left.seconds(500) is None
    left.reach(0.55, 1000)
    assert left.seconds(1000) == pytest.approx(40, abs=3)


def test_the_time_left_does_not_jump() -> None:
    left = TimeLeft()
    left.reach(0.1, 0)
    left.reach(0.5, 4)
    before = left.seconds(4)
    left.reach(0.6, 24)  # all at once ten times as slow
    after = left.seconds(24)
    assert before == pytest.approx(5)
    assert after is not None
    assert after < 0.5 * (0.4 * 24 / 0.5)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "nearly done"),
        (0.2, "about 1 s left"),
        (12, "about 12 s left"),
        (31, "about 35 s left"),
        (56, "about 1 min left"),
        (61, "about 2 min left"),
        (5401, "about 2 h left"),
    ],
)
def test_an_estimate_is_rounded(seconds: float, expected: str) -> None:
    assert left_text(seconds) == expected


def test_a_long_time_is_shown_in_minutes() -> None:
    assert [elapsed_text(seconds) for seconds in (0.9, 59.9, 125)] == ["0 s", "59 s", "2:05"]


def shown(text: Text) -> str:
    """Return how a text appears on stdout, which is a terminal."""
    screen = Screen()
    with standing_for("stdout", screen.file):
        terminal.show(text)
    return screen.close()


REPORT = Text("  pass  ").append("allclose" * 12, "bold green")


def test_colours_are_shown_on_a_terminal_and_no_line_is_broken() -> None:
    assert shown(REPORT) == f"  pass  \x1b[1;32m{'allclose' * 12}\x1b[0m\r\n"


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_colours_are_not_shown_where_they_are_not_wanted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv(name, "dumb")
    assert shown(REPORT) == f"{REPORT.plain}\r\n"


def test_an_empty_no_color_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[1;32m" in shown(REPORT)


def test_outside_a_terminal_colours_are_shown_only_if_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.show(REPORT)
    assert capsys.readouterr().out == f"{REPORT.plain}\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal.show(REPORT)
    assert "\x1b[1;32m" in capsys.readouterr().out


def test_what_a_stream_cannot_encode_is_escaped() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with standing_for("stdout", file):
        terminal.show(Text("日.pt"))
    assert file.buffer.getvalue() == b"\\u65e5.pt\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", [60, 90, 200])
def test_a_report_is_as_wide_as_the_terminal_up_to_100_columns(
    run: Run, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen()
    with standing_for("stdout", screen.file):
        run("explain", "fidelity")
    widest = max(len(line) for line in screen.close().splitlines())
    most = min(columns, 100)
    assert most - 12 < widest <= most
