"""Text that a terminal can be given: measured in cells, with nothing in it that moves the cursor.

Names of checkpoints and prompts come from outside, and are anything: wider than a line, of
characters that take two cells, or with escape sequences in them.
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

_CONSOLE = Console(file=io.StringIO())  # takes part in no output


def visible(text: str) -> str:
    """The text with an escape, such as ``\\x1b``, for each character that cannot be seen."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def visible_lines(text: str) -> str:
    """The same of each line of a text."""
    return "\n".join(visible(line) for line in text.split("\n"))


def shortened(text: str, width: int) -> str:
    """The text if it fits, or else its beginning and more of its end, which tells files apart."""
    if cell_len(text) <= width:
        return text
    head = text[: _fitting(text, max(0, width - len(_GAP)) // 3)] + _GAP
    start = len(text)
    while start > 0 and cell_len(head + text[start - 1 :]) <= width:
        start -= 1
    return head + text[start:]


def padded(text: str, width: int) -> str:
    """The text, filled up with blanks to that many cells."""
    return text + " " * (width - cell_len(text))


def wrapped(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of at most `width` cells. What does not fit into one is cut, for nothing runs over.

    Args:
        text: of any characters; those that cannot be seen are made visible.
        first: what the first line begins with, in characters that can be seen.
        rest: what the others begin with; by default as many blanks.
    """
    rest = " " * cell_len(first) if rest is None else rest
    told = visible(" ".join(re.split(r"[ \t\r\n]+", text.strip(" \t\r\n"))))
    top = _folded(told, width() - cell_len(first))[0]
    below = told[len(top) :].lstrip(" ")
    lines = [f"{rest}{line}" for line in _folded(below, width() - cell_len(rest))] if below else []
    return [line.rstrip() for line in [first + top, *lines]]


def _folded(text: str, room: int) -> list[str]:
    return [line.plain for line in Text(text).wrap(_CONSOLE, max(room, 2), overflow="fold")]


def command(words: Sequence[str], first: str = "") -> list[str]:
    """A command to be pasted into a shell, in lines of at most `width` cells.

    It goes on in the next line after a backslash, if need be within a word, which a shell puts
    together again.

    Args:
        words: a short name, and arguments.
        first: what the first line begins with.
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
            # At the very left: blanks would end the word.
            *pieces, line = _pieces(word, width() - len(" \\"))
            lines += [f"{piece}\\" for piece in pieces]
    return [*lines, line]


def quoted(word: str) -> str:
    """A word for a shell; with ``$'...'`` where it has characters that cannot be seen."""
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
    """As in the name of a file; other surrogates, which none has, as Python writes them."""
    try:
        return os.fsencode(character)
    except UnicodeEncodeError:
        return character.encode("utf-8", errors="surrogatepass")


def _fitting(text: str, width: int, before: str = "") -> int:
    """How many characters fit behind others."""
    count = 0
    while count < len(text) and cell_len(before + text[: count + 1]) <= width:
        count += 1
    return count


def _pieces(word: str, width: int) -> list[str]:
    """A word in parts that a shell takes as one, where nothing is between them."""
    pieces: list[str] = []
    start = 0
    while start < len(word):
        end = start + 1
        while end < len(word) and cell_len(quoted(word[start : end + 1])) <= width:
            end += 1
        pieces.append(quoted(word[start:end]))
        start = end
    return pieces
