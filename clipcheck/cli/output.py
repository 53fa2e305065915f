"""Print and write what a command found, whatever becomes of the stream or the file."""

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
    """Print a result, and write it as JSON where that is asked for."""
    from clipcheck.results import document

    give(text, document.render(result), json)


def give(text: Text, document: str, json: str | None) -> None:
    """Print the text and write the document to ``json``; for ``-`` print the document alone."""
    if json == "-":
        say(document)
        return
    display(text)
    if json is not None:
        write(Path(json), document)


def tell_github(result: Result, *, alone: bool) -> None:
    """Print annotations, which the runner also reads from stderr, and write the job's summary."""
    from clipcheck.report import github

    problem = github.summarise(result)
    if problem:
        complain(problem)
    for line in github.annotate(result):
        say(f"{line}\n", err=alone)


def display(text: Text) -> None:
    """Print in colours, where stdout is a terminal that has them."""
    from clipcheck.cli import terminal

    with _writing("stdout"):
        terminal.show(text)


def print_line(line: str) -> None:
    """Print a line, without anything in it that moves the cursor."""
    say(f"{visible(line)}\n")


def complain(message: str) -> None:
    """Print a line on stderr that begins with the name of the command."""
    typer.echo(f"clipcheck: {visible(message)}", err=True)


def tell(line: str) -> None:
    """Print a line on stderr, for whoever looks on."""
    say(f"{visible(line)}\n", err=True)


def say(text: str, *, err: bool = False) -> None:
    """Print the text as it is, on stdout or stderr."""
    with _writing("stderr" if err else "stdout"):
        typer.echo(text, nl=False, err=err)


def write(path: Path, contents: str) -> None:
    """Write a file, whole or not at all."""
    from clipcheck.writers.output import replacing

    with replacing(path) as temporary:
        temporary.write_text(contents, encoding="utf-8")


def visible(text: str) -> str:
    """Escape all that moves the cursor, but for ends of lines."""
    from clipcheck.report.cells import visible_lines

    return visible_lines(text)


@contextmanager
def noting(unwritten: list[OutputError]) -> Iterator[None]:
    """Print what cannot be written, note it, and go on: it must not hide the verdict."""
    try:
        yield
    except OutputError as error:
        log.debug("the traceback, as asked for", exc_info=True)
        typer.echo(f"clipcheck: {error}", err=True)
        unwritten.append(error)


@contextmanager
def _writing(stream: str) -> Iterator[None]:
    """A stream may be full, or closed at its other end."""
    try:
        yield
    except OSError as error:
        _abandon(sys.stdout if stream == "stdout" else sys.stderr)
        raise OutputError(
            f"what was found cannot be written to {stream} ({error.strerror or error})",
            remedy="Make room, or send it elsewhere.",
        ) from error


def _abandon(stream: TextIO) -> None:
    """Send what the stream still holds nowhere: else Python fails once more, over the exit code."""
    with suppress(OSError), open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), stream.fileno())
