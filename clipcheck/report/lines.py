"""Styled lines of a report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from clipcheck.report.cells import command, padded, shortened, visible, wrapped

GOOD, BAD, UNKNOWN, ASIDE = "green", "bold red", "bold yellow", "dim"

INDENT = "  "

_LABEL = 21

NEXT, OR = "Next: ", "  or: "

NOT_JUDGED = "not judged"

Lines = list[Text]


def texts(lines: Sequence[str]) -> Lines:
    """Return plain lines."""
    return [Text(line) for line in lines]


def step(label: str, words: Sequence[str], what: str) -> list[str]:
    """Return a command behind a label, and below it what it does."""
    return [*command(words, label), *wrapped(what, " " * len(label))]


def indented(text: str) -> Lines:
    """Return a text in indented lines that fit."""
    return texts(wrapped(text, INDENT))


def row(label: str, style: str, name: str, text: str) -> Lines:
    """Return a label and a name in a column, and the text beside them."""
    title = shortened(visible(f"{label}  {name}".rstrip()), _LABEL - 1)
    lines = texts(wrapped(text, INDENT + padded(title, _LABEL)))
    lines[0].stylize(style, len(INDENT), len(INDENT) + len(label))
    return lines


def joined(lines: Lines) -> Text:
    """Return lines as one text."""
    return Text("\n").join(lines)
