"""Print and write the result of a command, and report streams and files that fail."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

from clipcheck.errors import OutputError

if TYPE_CHECKING:
    from rich.text import Text

    from clipcheck.results.judgement import Result

log = logging.getLogger("clipcheck")


def show_result(text: Text, result: Result, json: str | None = None) -> None:
    """Print a result, and write it as JSON if a file is given."""
    from clipcheck.results import document

    give(text, document.render(result), json)


def give(text: Text, document: str, json: str | None) -> None:
    """Print the text and write the document to ``json``; for ``-`` print only the document."""
    if json == "-":
        say(document)
        return
    display(text)
    if json is not None:
        write(Path(json), document)


def write_for_github(result: Result, *, alone: bool) -> None:
    """Print annotations for GitHub and write the job's summary.

    Args:
        result: to annotate.
        alone: stdout is for JSON alone: print annotations on stderr, which GitHub reads as well.
    """
    from clipcheck.report import github

    problem = github.summarise(result)
    if problem:
        complain(problem)
    for line in github.annotate(result):
        say(f"{line}\n", err=alone)


def display(text: Text) -> None:
    """Print on stdout, in colours if it is a terminal that has them."""
    from clipcheck.cli import terminal

    with _writing("stdout"):
        terminal.show(text)


def print_line(line: str) -> None:
    """Print a line on stdout, with control characters escaped."""
    say(f"{visible(line)}\n")


def complain(message: str) -> None:
    """Print ``clipcheck: MESSAGE`` on stderr."""
    typer.echo(f"clipcheck: {visible(message)}", err=True)


def tell(line: str) -> None:
    """Print a line on stderr."""
    say(f"{visible(line)}\n", err=True)


def say(text: str, *, err: bool = False) -> None:
    """Print the text unchanged, on stdout or stderr."""
    with _writing("stderr" if err else "stdout"):
        typer.echo(text, nl=False, err=err)


def write(path: Path, contents: str) -> None:
    """Write a file atomically."""
    from clipcheck.writers.output import replacing

    with replacing(path) as temporary:
        temporary.write_text(contents, encoding="utf-8")


def visible(text: str) -> str:
    """Escape control characters other than line ends."""
    from clipcheck.report.cells import visible_lines

    return visible_lines(text)


@contextmanager
def collecting_output_errors(output_errors: list[OutputError]) -> Iterator[None]:
    """Print an output error, append it to the list, and continue: it must not hide the verdict."""
    try:
        yield
    except OutputError as error:
        log.debug("traceback, because of --debug", exc_info=True)
        typer.echo(f"clipcheck: {error}", err=True)
        output_errors.append(error)


@contextmanager
def _writing(stream: str) -> Iterator[None]:
    """Raise an OutputError if the stream is full or closed at its other end."""
    try:
        yield
    except OSError as error:
        _abandon(sys.stdout if stream == "stdout" else sys.stderr)
        raise OutputError(
            f"cannot write the result to {stream} ({error.strerror or error})",
            remedy="Free disk space, or redirect the output to another place.",
        ) from error


def _abandon(stream: TextIO) -> None:
    """Discard the stream's buffer: Python flushes at exit, fails, and changes the exit code."""
    with suppress(OSError), open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), stream.fileno())
