"""Make text safe for a terminal, and fit it into a number of cells.

Names of checkpoints and prompts come from outside: they may be wider than a line, have characters
that take two cells, or contain escape sequences.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from clipcheck.system.width import width

_GAP = "..."

_CONSOLE = Console(file=io.StringIO())  # only wraps text


def visible(text: str) -> str:
    """Escape each unprintable character, as in ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def visible_lines(text: str) -> str:
    """Escape each unprintable character but line ends."""
    return "\n".join(visible(line) for line in text.split("\n"))


def shortened(text: str, width: int) -> str:
    """Shorten a long text in the middle, and keep more of its end: names of files differ there."""
    if cell_len(text) <= width:
        return text
    head = text[: _count_fitting(text, max(0, width - len(_GAP)) // 3)] + _GAP
    start = len(text)
    while start > 0 and cell_len(head + text[start - 1 :]) <= width:
        start -= 1
    return head + text[start:]


def padded(text: str, width: int) -> str:
    """Pad the text with blanks to this many cells."""
    return text + " " * (width - cell_len(text))


def wrapped(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Wrap a text into lines of at most `width` cells; words that are too long are cut.

    Args:
        text: may have unprintable characters, which are escaped.
        first: prefix of the first line, printable.
        rest: prefix of the other lines; default: as many blanks.
    """
    rest = " " * cell_len(first) if rest is None else rest
    told = visible(" ".join(re.split(r"[ \t\r\n]+", text.strip(" \t\r\n"))))
    top = _fold(told, width() - cell_len(first))[0]
    below = told[len(top) :].lstrip(" ")
    lines = [f"{rest}{line}" for line in _fold(below, width() - cell_len(rest))] if below else []
    return [line.rstrip() for line in [first + top, *lines]]


def _fold(text: str, room: int) -> list[str]:
    return [line.plain for line in Text(text).wrap(_CONSOLE, max(room, 2), overflow="fold")]


def command(words: Sequence[str], first: str = "") -> list[str]:
    """Write a command to paste into a shell, in lines of at most `width` cells.

    Lines end with a backslash, within a word if it is too long; the shell joins them.

    Args:
        words: name and arguments; the name is short.
        first: prefix of the first line.
    """
    name, *arguments = words
    rest = " " * len(first)
    lines: list[str] = []
    line = first + quoted(name)
    for number, word in enumerate(arguments, start=1):
        whole = quoted(word)
        room = width() if number == len(arguments) else width() - len(" \\")
        if cell_len(f"{line} {whole}") <= room:
            line = f"{line} {whole}"
            continue
        lines.append(f"{line} \\")
        line = rest + whole
        if cell_len(line) > room:
            # Without indent: blanks would end the word.
            *pieces, line = _pieces(word, width() - len(" \\"))
            lines += [f"{piece}\\" for piece in pieces]
    return [*lines, line]


def quoted(word: str) -> str:
    """Quote a word for a shell, as ``$'...'`` if it has unprintable characters."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(_escaped(character) for character in word) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in _bytes(character))


def _bytes(character: str) -> bytes:
    """Encode as a file's name; surrogates that no name has, as UTF-8."""
    try:
        return os.fsencode(character)
    except UnicodeEncodeError:
        return character.encode("utf-8", errors="surrogatepass")


def _count_fitting(text: str, width: int, before: str = "") -> int:
    """Count how many characters fit after ``before``."""
    count = 0
    while count < len(text) and cell_len(before + text[: count + 1]) <= width:
        count += 1
    return count


def _pieces(word: str, width: int) -> list[str]:
    """Split a word into quoted parts that a shell joins if nothing stands between them."""
    pieces: list[str] = []
    start = 0
    while start < len(word):
        end = start + 1
        while end < len(word) and cell_len(quoted(word[start : end + 1])) <= width:
            end += 1
        pieces.append(quoted(word[start:end]))
        start = end
    return pieces
