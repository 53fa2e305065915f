"""Tokenize texts as the reference does, and with known differences of other libraries."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Collection, Iterator

import ftfy
import numpy as np
import regex
from numpy.typing import NDArray

from clipcheck.errors import UsageError
from clipcheck.harness.preprocessing.differences import (
    CASE_SENSITIVE,
    COMPOSED,
    ENTITIES_KEPT,
    LOWERED_APART,
    NAMES_AS_WRITTEN,
    NOT_REPAIRED,
    OTHER_NAMES,
    PADDED_WITH_END,
    REFUSED,
    UNTRUNCATED,
    Difference,
)
from clipcheck.inputs.tokenizer import END_TOKEN, START_TOKEN, default_tokenizer

_NAMES = {"<|startoftext|>": START_TOKEN, "<|endoftext|>": END_TOKEN}
_OTHER_NAMES = {"<start_of_text>": START_TOKEN, "<end_of_text>": END_TOKEN}

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

_LETTERS = regex.compile(r"[\p{L}\p{N}]")


def tokens(text: str, length: int, how: Collection[Difference] = ()) -> NDArray[np.int64]:
    """Tokenize a text.

    Args:
        length: tokens that the model takes.
        how: differences from the reference (with truncation) to apply.

    Returns:
        int64 [length], or longer without truncation.

    Raises:
        UsageError: the text is too long and the library would refuse it.
    """
    ids = [START_TOKEN, *_encoded(text, how), END_TOKEN]
    if len(ids) > length and REFUSED in how:
        raise UsageError(
            f"Input {text} is too long for context length {length}",
            remedy=f"It has {len(ids)} tokens.",
        )
    if len(ids) > length and UNTRUNCATED not in how:
        ids = [*ids[: length - 1], END_TOKEN]
    padding = END_TOKEN if PADDED_WITH_END in how else 0
    return np.array(ids + [padding] * (length - len(ids)), dtype=np.int64)


def settled(text: str) -> bool:
    """Tell whether all libraries agree which characters of a text are letters.

    Unicode gets new letters each year; for a character that Python's own tables do not have yet,
    libraries may disagree.
    """
    return not any(unicodedata.category(each) == "Cn" for each in _LETTERS.findall(text))


def _encoded(text: str, how: Collection[Difference]) -> Iterator[int]:
    names = _OTHER_NAMES if OTHER_NAMES in how else _NAMES
    cleaned = _cleaned(text, how)
    if NAMES_AS_WRITTEN not in how:
        for word in _split(_lowered(cleaned, how), names, how):
            yield from _ids(word, names)
        return
    for part in _parts(cleaned, names):
        if part in names:
            yield names[part]
            continue
        for word in _split(_lowered(_composed(part, how), how), names, how):
            # Became a name only by cleaning, so it is no token but split as any text.
            pieces = _split(word, (), how) if word in names else [word]
            yield from (i for piece in pieces for i in _ids(piece, {}))


def _cleaned(text: str, how: Collection[Difference]) -> str:
    if NOT_REPAIRED not in how:
        text = ftfy.fix_text(text)
    if ENTITIES_KEPT not in how:
        text = html.unescape(html.unescape(text))
    return text if NAMES_AS_WRITTEN in how else _composed(text, how)


def _composed(text: str, how: Collection[Difference]) -> str:
    # ftfy composes as well, so without ftfy composing is done here.
    composing = COMPOSED in how or NOT_REPAIRED in how
    return unicodedata.normalize("NFC", text) if composing else text


def _lowered(text: str, how: Collection[Difference]) -> str:
    if LOWERED_APART in how:
        return "".join(character.lower() for character in text)
    return text.lower()


def _parts(text: str, names: Collection[str]) -> list[str]:
    parts: list[str] = regex.split("(" + "|".join(map(regex.escape, names)) + ")", text)
    return parts


def _split(text: str, names: Collection[str], how: Collection[Difference]) -> list[str]:
    pattern = "|".join([*map(regex.escape, names), _WORDS])
    # IGNORECASE in the reference: U+017F, the long s, has to match as an "s".
    flags = 0 if CASE_SENSITIVE in how else regex.IGNORECASE
    words: list[str] = regex.findall(pattern, text, flags)
    return words


def _ids(word: str, names: dict[str, int]) -> tuple[int, ...]:
    return (names[word],) if word in names else default_tokenizer().encode_word(word)
