"""Parts of prompts: plain words, odd pieces, and the words of the vocabulary."""

from __future__ import annotations

import functools

from clipcheck.inputs.tokenizer import VOCABULARY_SIZE, default_tokenizer

PLAIN = ("a", "dog", "red", "snow", "guitar", "Bridge", "it's", "7", "TWO", "x-ray", "rock'n'roll")
"""Words of one to three tokens, the simplest first."""

TEMPLATES = (
    "a photo of {}.",
    "{} in the rain",
    "a pencil sketch of {}, unfinished",
    "Is this {}?",
    "NOT {}!",
)
"""Templates for a sentence."""

JOINERS = ("", "\n", " \t ", ", ", "\xa0", "\u3000")
"""Separators between pieces, besides a space."""

BLANKS = ("", " ", "\t", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u2003", "\u2028",
           "\u200b", "\u3000", "\ufeff")  # fmt: skip
"""The empty string, and invisible characters."""

CHARACTERS = {
    "emoji": (0x1F300, 0x1FAFF),
    "combining marks": (0x0300, 0x036F),
    "right to left": (0x05D0, 0x06FF),
    "CJK": (0x3041, 0x9FFF),
    "control": (0x00, 0x1F),
}
"""Ranges of characters, both ends included."""

PIECES = {
    "emoji": ("\U0001f600", "\U0001f44b\U0001f3fe", "\U0001f468\u200d\U0001f373", "\u2764\ufe0f"),
    "combining marks": ("e\u0301", "o\u0302\u0323", "\u0915\u094d\u0937"),
    "right to left": ("\u05d1\u05d9\u05ea", "\u0628\u064a\u062a", "\u202eright\u202c"),
    "CJK": ("\u72ac", "\u3044\u306c", "\uac15\uc544\uc9c0", "\uff23\uff11"),
    "entities": ("&amp;", "&lt;b&gt;", "&eacute;", "&#x1F600;"),
    "entities escaped twice": ("&amp;amp;", "&amp;lt;i&amp;gt;"),
    # UTF-8 decoded as Latin-1 or Windows-1252.
    "mojibake": tuple(
        text.encode().decode(wrong)
        for text, wrong in (("d\u00e9j\u00e0", "latin-1"), ("\u2019tis", "cp1252"))
    ),
    "special tokens": ("<|startoftext|>", "<|endoftext|>", "<|EndOfText|>"),
    "control": ("\x00", "\x07", "\x1b[1mbold\x1b[0m", "\x7f", "\x9f"),
}
"""Pieces for steps of the tokenizer that letters do not reach."""


@functools.cache
def whole_words() -> tuple[str, ...]:
    """The texts that encode to one token which decodes to them, in the order of the tokens."""
    tokenizer = default_tokenizer()
    decoded = enumerate(tokenizer.decode([i]) for i in range(VOCABULARY_SIZE - 2))
    # What ends without a blank is never the end of a word.
    words = [(i, text.strip()) for i, text in decoded if text.endswith(" ")]
    return tuple(word for i, word in words if _is_plain(word) or tokenizer.encode(word) == [i])


def _is_plain(word: str) -> bool:
    """Whether a word has only letters with which each word of this vocabulary encodes to itself;
    testing each word would take a second."""
    return word.isascii() and word.isalpha() and word.islower()
